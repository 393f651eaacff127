//! Each field of each request: present, absent, null, of the wrong type, out of range; and others.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::endpoints::{Endpoint, endpoints};
use crate::kinds::{Field, Presence, filled, mutations};
use crate::{command, refused};

fn with(body: &Value, name: &str, value: &Value) -> String {
    let mut body = body.clone();
    body[name] = value.clone();
    body.to_string()
}

fn without(body: &Value, name: &str) -> String {
    let mut body = body.clone();
    body.as_object_mut().unwrap().remove(name);
    body.to_string()
}

fn each(mut test: impl FnMut(&Endpoint, &Value)) {
    for endpoint in endpoints() {
        let body = filled(&endpoint.fields);
        test(&endpoint, &body);
    }
}

/// The command of a body that must be a good one.
fn accepted(endpoint: &Endpoint, body: &str) -> api::Command {
    match command(endpoint.method, endpoint.path, body) {
        Ok(command) => command,
        Err(fault) => panic!("{} {} {body}: {fault}", endpoint.method, endpoint.path),
    }
}

#[test]
fn bodies_with_all_fields_and_with_as_few_as_can_be_are_accepted() {
    each(|endpoint, body| {
        accepted(endpoint, &body.to_string());
        let mut few = body.clone();
        let mut optional = Vec::new();
        for field in &endpoint.fields {
            if field.presence != Presence::Required {
                few.as_object_mut().unwrap().remove(field.name);
                optional.push(field);
            }
        }
        // Two of them say at least something.
        let needs_one = matches!(
            (endpoint.method, endpoint.path),
            ("PATCH", "/machine-config" | "/drives/a_1")
        );
        if needs_one {
            refused(endpoint.method, endpoint.path, &few.to_string());
        } else {
            accepted(endpoint, &few.to_string());
        }
        for Field { name, value, .. } in optional {
            accepted(endpoint, &with(&few, name, value));
        }
    });
}

#[test]
fn a_field_that_may_be_absent_may_be_so() {
    each(|endpoint, body| {
        let all = accepted(endpoint, &body.to_string());
        for field in &endpoint.fields {
            let absent = without(body, field.name);
            let null = with(body, field.name, &Value::Null);
            if field.presence == Presence::Required {
                let message = refused(endpoint.method, endpoint.path, &absent);
                assert!(message.contains(field.name), "{message}");
            } else {
                let command = accepted(endpoint, &absent);
                assert_ne!(command, all, "{absent}: {} says nothing", field.name);
                if field.presence == Presence::Optional {
                    assert_eq!(accepted(endpoint, &null), command, "{null}");
                }
            }
        }
    });
}

#[test]
fn good_values_are_accepted() {
    each(|endpoint, body| {
        for field in endpoint.fields.iter().chain(&endpoint.apart) {
            for value in &field.good {
                accepted(endpoint, &with(body, field.name, value));
            }
        }
        for field in &endpoint.apart {
            accepted(endpoint, &with(body, field.name, &Value::Null));
        }
    });
}

#[test]
fn wrong_values_are_refused_by_name() {
    let mut count = 0;
    each(|endpoint, body| {
        let apart = mutations(&endpoint.apart, body);
        for (field, body) in mutations(&endpoint.fields, body).into_iter().chain(apart) {
            let message = refused(endpoint.method, endpoint.path, &body.to_string());
            // An id that is not the one in the path.
            let is_named = message.contains(field) || message.contains("ID in the path");
            assert!(is_named, "{body}: {message} does not name {field}");
            count += 1;
        }
    });
    assert!(count > 2000, "{count} bodies only");
}

#[test]
fn mistakes_of_json_are_refused() {
    each(|endpoint, body| {
        let text = body.to_string();
        let (method, path) = (endpoint.method, endpoint.path);
        let first = endpoint.fields[0].name;
        let values: Vec<_> = endpoint.fields.iter().map(|field| &field.value).collect();
        let twice = format!("{{\"{first}\":{},{}", body[first], &text[1..]);
        assert!(refused(method, path, &twice).contains("duplicate field"));
        for wrong in [
            " ",
            "null",
            "true",
            "1",
            "\"x\"",
            "[]",
            &json!(values).to_string(),
            &text[..text.len() - 1],
            &format!("{text}x"),
            &format!("{text}{text}"),
            &format!("[{text}]"),
            &"[".repeat(100_000),
            &"{\"unknown\":".repeat(100_000),
        ] {
            refused(method, path, wrong);
        }
        let mut bytes = text.clone().into_bytes();
        bytes.insert(2, 0xff);
        assert!(api::route(method, path, &bytes).is_err());
    });
}

#[test]
fn bodies_are_there() {
    for endpoint in endpoints() {
        if endpoint.path == "/balloon/hinting/start" {
            continue;
        }
        assert_eq!(
            refused(endpoint.method, endpoint.path, ""),
            format!("Empty {} request.", endpoint.method)
        );
    }
}

/// Everything that takes an object is in the table.
#[test]
fn no_request_is_forgotten() {
    let tested: HashSet<_> = endpoints()
        .iter()
        .map(|endpoint| {
            let path = endpoint.path.split("/a_1").next().unwrap().to_owned();
            (endpoint.method, path)
        })
        .collect();
    for request in api::states::Request::ALL {
        let mut words = request.name().split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let path = path.split("/{").next().unwrap();
        let is_any_json = matches!(path, "/mmds" | "/balloon/hinting/stop");
        if matches!(method, "PUT" | "PATCH") && !is_any_json {
            assert!(
                tested.contains(&(method, path.to_owned())),
                "{method} {path}"
            );
        }
    }
}
