//! Answers of a monitor against the description of its API: each status, header and body is one that it knows.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::service::Answer;

/// `api/openapi.json`.
pub static DESCRIPTION: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(api::openapi::DESCRIPTION).unwrap());

/// Headers that are about the message and the connection, and no part of an API.
const OF_HTTP: [&str; 7] = [
    "connection",
    "content-length",
    "content-type",
    "date",
    "server",
    "transfer-encoding",
    "upgrade",
];

/// What a request that is not in the description is answered with.
const UNKNOWN: &str = "#/components/responses/BadRequest";

/// Follows a reference within the description.
pub fn resolved(value: &Value) -> &Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => at(reference),
        None => value,
    }
}

fn at(reference: &str) -> &'static Value {
    let pointer = reference.strip_prefix('#').unwrap();
    DESCRIPTION
        .pointer(pointer)
        .unwrap_or_else(|| panic!("the description has no {reference}"))
}

/// The description of a request; None: there is none.
pub fn operation(method: &str, target: &str) -> Option<&'static Value> {
    let target = target.trim_start_matches('/');
    let target = target.strip_suffix('/').unwrap_or(target);
    let paths = DESCRIPTION["paths"].as_object().unwrap();
    // A path that is there as it is comes before one with a name in it.
    let (exact, named): (Vec<_>, Vec<_>) = paths.iter().partition(|(path, _)| !path.contains('{'));
    let mut found = exact
        .into_iter()
        .chain(named)
        .filter(|(path, _)| fits(path.trim_start_matches('/'), target));
    found.find_map(|(_, item)| item.get(method.to_ascii_lowercase()))
}

fn fits(path: &str, target: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    let found: Vec<&str> = target.split('/').collect();
    !target.contains('?')
        && segments.len() == found.len()
        && segments.iter().zip(found).all(|(segment, found)| {
            *segment == found || (segment.starts_with('{') && !found.is_empty())
        })
}

/// Whether `schema`, a part of the description, allows `value`; otherwise why not.
pub fn allows(schema: &Value, value: &Value) -> Result<(), String> {
    static VALIDATORS: LazyLock<Mutex<HashMap<String, Validator>>> = LazyLock::new(Mutex::default);
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let validator = validators.entry(schema.to_string()).or_insert_with(|| {
        let schema = json!({ "allOf": [schema], "components": DESCRIPTION["components"] });
        jsonschema::draft202012::new(&schema).unwrap()
    });
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

/// Checks an answer; fails unless the description has it.
#[track_caller]
pub fn check(method: &str, target: &str, answer: &Answer) {
    if let Err(why) = checked(method, target, answer) {
        panic!("{method} {target}: the description does not have this answer: {why}: {answer:?}");
    }
}

fn checked(method: &str, target: &str, answer: &Answer) -> Result<(), String> {
    let status = answer.status.to_string();
    let response = match operation(method, target) {
        Some(operation) => operation["responses"]
            .get(&status)
            .map(resolved)
            .ok_or("its status")?,
        None if status == "400" => at(UNKNOWN),
        None => return Err("there is no such request".into()),
    };
    headers(response, answer)?;
    let Some(content) = response.get("content") else {
        return if answer.body.is_null() && answer.header("content-type").is_none() {
            Ok(())
        } else {
            Err("it has a body".into())
        };
    };
    let kind = answer.header("content-type").ok_or("no Content-Type")?;
    let kind = kind.split(';').next().unwrap_or_default();
    let schema = content.get(kind).ok_or("its Content-Type")?;
    allows(&schema["schema"], &answer.body)
}

fn headers(response: &Value, answer: &Answer) -> Result<(), String> {
    let none = serde_json::Map::new();
    let described = response.get("headers").and_then(Value::as_object);
    let described = described.unwrap_or(&none);
    for (name, value) in &answer.headers {
        if OF_HTTP.contains(&name.as_str()) {
            continue;
        }
        let found = described
            .iter()
            .find(|(described, _)| described.eq_ignore_ascii_case(name));
        let (_, header) = found.ok_or_else(|| format!("header {name}"))?;
        let schema = &header["schema"];
        let value = match schema["type"].as_str() {
            Some("integer") => serde_json::from_str(value).unwrap_or_else(|_| json!(value)),
            _ => json!(value),
        };
        allows(schema, &value).map_err(|why| format!("header {name}: {why}"))?;
    }
    for (name, header) in described {
        if header["required"] == true && answer.header(&name.to_ascii_lowercase()).is_none() {
            return Err(format!("no header {name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, kind: Option<&str>, body: Value) -> Answer {
        let headers = kind.map(|kind| ("content-type".to_owned(), kind.to_owned()));
        Answer {
            status,
            headers: headers.into_iter().collect(),
            body,
        }
    }

    #[test]
    fn what_the_description_does_not_have_is_found() {
        let json = Some("application/json");
        let version = json!({ "firecracker_version": "1", "mote_version": "1" });
        let fault = json!({ "fault_message": "no" });
        let is_right = |method, path, answer: &Answer| checked(method, path, answer).is_ok();
        assert!(is_right(
            "GET",
            "/version",
            &answer(200, json, version.clone())
        ));
        assert!(is_right(
            "GET",
            "//version/",
            &answer(200, json, version.clone())
        ));
        assert!(is_right(
            "PUT",
            "/drives/a",
            &answer(204, None, Value::Null)
        ));
        assert!(is_right(
            "PUT",
            "/drives/a",
            &answer(400, json, fault.clone())
        ));
        assert!(is_right(
            "PUT",
            "/vsock/any",
            &answer(204, None, Value::Null)
        ));
        assert!(is_right(
            "POST",
            "/version",
            &answer(400, json, fault.clone())
        ));
        assert!(is_right(
            "GET",
            "/version?a",
            &answer(400, json, fault.clone())
        ));

        // Status, type, body, request.
        assert!(!is_right(
            "GET",
            "/version",
            &answer(204, None, Value::Null)
        ));
        assert!(!is_right(
            "GET",
            "/version",
            &answer(404, json, fault.clone())
        ));
        assert!(!is_right(
            "GET",
            "/version",
            &answer(200, None, version.clone())
        ));
        assert!(!is_right(
            "GET",
            "/version",
            &answer(200, Some("text/plain"), version.clone())
        ));
        assert!(!is_right(
            "PUT",
            "/drives/a",
            &answer(204, json, Value::Null)
        ));
        assert!(!is_right(
            "PUT",
            "/drives/a",
            &answer(204, None, fault.clone())
        ));
        assert!(!is_right(
            "PUT",
            "/drives/a",
            &answer(400, json, json!({ "error": "no" }))
        ));
        assert!(!is_right(
            "GET",
            "/nowhere",
            &answer(404, json, fault.clone())
        ));
        for (name, value) in [
            ("mote_version", Value::Null),
            ("mote_version", json!(1)),
            ("another", json!("1")),
        ] {
            let mut version = version.clone();
            version[name] = value;
            assert!(!is_right("GET", "/version", &answer(200, json, version)));
        }
        // Headers: one that is not there, a value that is none, one that is missing.
        let mut put = answer(204, None, Value::Null);
        put.headers.push(("deprecation".into(), "true".into()));
        assert!(is_right("PUT", "/machine-config", &put));
        assert!(!is_right("PUT", "/entropy", &put));
        put.headers[0].1 = "yes".into();
        assert!(!is_right("PUT", "/machine-config", &put));
        let mut console = answer(101, None, Value::Null);
        assert!(!is_right("GET", "/console", &console));
        console.headers.push(("mote-backlog".into(), "7".into()));
        assert!(is_right("GET", "/console", &console));
        console.headers[0].1 = "-7".into();
        assert!(!is_right("GET", "/console", &console));
    }
}
