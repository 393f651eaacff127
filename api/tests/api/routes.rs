//! Methods, paths and ids.

use api::states::Request;
use api::types::{HintingStart, Validate};
use api::{Command, Route, route};
use serde_json::json;

use crate::{command, is_deprecated, refused};

#[test]
fn requests_without_a_body_are_commands() {
    for request in Request::ALL {
        let (method, path) = request.name().split_once(' ').unwrap();
        let path = path
            .replace("{drive_id}", "x")
            .replace("{iface_id}", "x")
            .replace("{id}", "x");
        if !matches!(method, "GET" | "DELETE") {
            continue;
        }
        for path in [path.clone(), format!("{path}/"), format!("//{path}")] {
            let Ok(found) = route(method, &path, b"") else {
                panic!("{method} {path} leads nowhere");
            };
            match (found, request) {
                (
                    Route::Command {
                        command,
                        deprecated,
                    },
                    _,
                ) => {
                    assert_eq!(command.name(), request.name());
                    assert!(!deprecated);
                }
                (Route::OpenApi, Request::GetOpenApi)
                | (Route::Events, Request::GetEvents)
                | (Route::Console, Request::GetConsole) => {}
                (other, _) => panic!("{method} {path} is {other:?}"),
            }
        }
        let refusal = route(method, &path, b"{}").unwrap_err();
        assert_eq!(
            refusal.fault.message,
            format!("{method} request cannot have a body.")
        );
    }
    assert_eq!(
        command("DELETE", "/drives/a", ""),
        Ok(Command::DeleteDrive("a".into()))
    );
    assert_eq!(
        command("DELETE", "/network-interfaces/a", ""),
        Ok(Command::DeleteInterface("a".into()))
    );
    assert_eq!(
        command("DELETE", "/pmem/a", ""),
        Ok(Command::DeletePmem("a".into()))
    );
}

#[test]
fn other_methods_and_paths_do_not_exist() {
    for (method, path, named) in [
        ("PATCH", "/boot-source", "PATCH boot-source."),
        ("POST", "/", "POST ."),
        ("HEAD", "/", "HEAD ."),
        ("OPTIONS", "*", "OPTIONS *."),
        ("get", "/", "get ."),
        ("GET", "/boot-source", "GET boot-source."),
        ("DELETE", "/boot-source", "DELETE boot-source."),
        ("PUT", "/nothing", "PUT nothing."),
        ("GET", "/drives/a", "GET drives/a."),
        ("GET", "/drives", "GET drives."),
        ("PUT", "/vm", "PUT vm."),
        ("GET", "/vm", "GET vm."),
        ("PATCH", "/vm/x", "PATCH vm/x."),
        ("PUT", "/snapshot", "PUT snapshot."),
        ("PUT", "/snapshot/x", "PUT snapshot/x."),
        ("PUT", "/hotplug/x", "PUT hotplug/x."),
        ("PUT", "/mmds/x", "PUT mmds/x."),
        ("GET", "/balloon/x", "GET balloon/x."),
        ("PATCH", "/balloon/x", "PATCH balloon/x."),
        ("PATCH", "/balloon/hinting", "PATCH balloon/hinting."),
        (
            "PUT",
            "/balloon/hinting/start",
            "PUT balloon/hinting/start.",
        ),
        // Known ones, and more.
        ("PUT", "/balloon/x", "PUT balloon/x."),
        ("PUT", "/boot-source/x", "PUT boot-source/x."),
        ("PUT", "/actions/x", "PUT actions/x."),
        ("GET", "/machine-config/x", "GET machine-config/x."),
        ("GET", "/vm/config/x", "GET vm/config/x."),
        ("GET", "/version/x", "GET version/x."),
        ("PUT", "/drives/a/x", "PUT drives/a/x."),
        ("PUT", "/drives//a", "PUT drives//a."),
        ("PUT", "/vsock/a/b", "PUT vsock/a/b."),
        (
            "GET",
            "/balloon/hinting/status/x",
            "GET balloon/hinting/status/x.",
        ),
        ("GET", "/a/b/c/d/e", "GET a/b/c/d/e."),
        ("GET", "/version//", "GET version/."),
        // Queries, and names that only look right.
        ("GET", "/?", "GET ?."),
        ("GET", "/version?x=1", "GET version?x=1."),
        ("PUT", "/vsock/a?b", "PUT vsock/a?b."),
        ("GET", "/Version", "GET Version."),
        ("GET", "/%76ersion", "GET %76ersion."),
        ("GET", "/ version", "GET  version."),
    ] {
        assert_eq!(
            refused(method, path, ""),
            format!("Invalid request method and/or path: {named}")
        );
    }
    let long = format!("/{}", "é".repeat(10_000));
    let message = refused(&"X".repeat(10_000), &long, "");
    assert!(message.len() < 500, "{}", message.len());
}

#[test]
fn sockets_may_be_named() {
    let body = r#"{"guest_cid": 3, "uds_path": "v"}"#;
    let plain = command("PUT", "/vsock", body).unwrap();
    for path in ["/vsock/", "/vsock/root", "/vsock/a-b.c", "/vsock/a/"] {
        assert_eq!(command("PUT", path, body), Ok(plain.clone()), "{path}");
    }
}

#[test]
fn ids_have_a_form_and_are_the_same_in_path_and_body() {
    const EMPTY: &str = "The ID cannot be empty.";
    for (resource, field, rest) in [
        (
            "drives",
            "drive_id",
            json!({ "is_root_device": false, "path_on_host": "x" }),
        ),
        (
            "network-interfaces",
            "iface_id",
            json!({ "host_dev_name": "x" }),
        ),
        ("pmem", "id", json!({ "path_on_host": "x" })),
    ] {
        let body = |id: &str| {
            let mut body = rest.clone();
            body[field] = id.into();
            body.to_string()
        };
        for method in ["PUT", "PATCH", "DELETE"] {
            for path in [
                format!("/{resource}"),
                format!("/{resource}/"),
                format!("/{resource}//"),
            ] {
                assert_eq!(refused(method, &path, "{}"), EMPTY, "{method} {path}");
            }
            for id in ["a-b", "a.b", "a b", "a%41", "ä-", "💥"] {
                let message = refused(method, &format!("/{resource}/{id}"), &body(id));
                assert!(
                    message.contains("letters, digits and underscores only"),
                    "{message}"
                );
            }
        }
        for id in ["a", "_", "7", "Ä", "root_1", &"x".repeat(1000)] {
            assert!(
                command("PUT", &format!("/{resource}/{id}"), &body(id)).is_ok(),
                "{id}"
            );
        }
        let message = refused("PUT", &format!("/{resource}/one"), &body("two"));
        assert!(
            message.contains("\"one\"") && message.contains("\"two\""),
            "{message}"
        );
        // What is wrong with the path comes before what is wrong with the body.
        assert!(refused("PUT", &format!("/{resource}/a-b"), "").contains("letters"));
    }
}

#[test]
fn hinting_takes_a_body_or_none() {
    let start = |acknowledge_on_stop| {
        Ok(Command::StartHinting(HintingStart {
            acknowledge_on_stop,
        }))
    };
    let path = "/balloon/hinting/start";
    assert_eq!(command("PATCH", path, ""), start(true));
    assert_eq!(command("PATCH", path, "{}"), start(true));
    assert_eq!(
        command("PATCH", path, r#"{"acknowledge_on_stop": false}"#),
        start(false)
    );
    for body in ["", "{}", "anything"] {
        assert_eq!(
            command("PATCH", "/balloon/hinting/stop", body),
            Ok(Command::StopHinting)
        );
    }
}

#[test]
fn metadata_is_any_json() {
    for body in ["{}", "null", "[1]", "\"x\"", "7", r#"{"a": {"b": null}}"#] {
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(value.validate().is_ok());
        assert_eq!(
            command("PUT", "/mmds", body),
            Ok(Command::PutMmds(value.clone()))
        );
        assert_eq!(
            command("PATCH", "/mmds", body),
            Ok(Command::PatchMmds(value))
        );
    }
    for method in ["PUT", "PATCH"] {
        assert_eq!(
            refused(method, "/mmds", ""),
            format!("Empty {method} request.")
        );
        let deep = "[".repeat(100_000);
        for body in ["{", "nul", "{} {}", &deep] {
            let message = refused(method, "/mmds", body);
            assert!(
                message.starts_with(
                    "An error occurred when deserializing the json body of a request: "
                )
            );
        }
    }
}

#[test]
fn what_is_deprecated_is_known_of_good_and_of_wrong_values() {
    let machine = "/machine-config";
    let mmds = "/mmds/config";
    for (expected, method, path, body) in [
        (
            false,
            "PUT",
            machine,
            r#"{"vcpu_count": 1, "mem_size_mib": 128}"#,
        ),
        (
            false,
            "PUT",
            machine,
            r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": null}"#,
        ),
        (
            true,
            "PUT",
            machine,
            r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "None"}"#,
        ),
        (
            true,
            "PUT",
            machine,
            r#"{"vcpu_count": 0, "mem_size_mib": 128, "cpu_template": "T2"}"#,
        ),
        (true, "PATCH", machine, r#"{"cpu_template": "T2"}"#),
        (false, "PATCH", machine, r#"{"smt": false}"#),
        (true, "PUT", mmds, r#"{"network_interfaces": ["a"]}"#),
        (
            true,
            "PUT",
            mmds,
            r#"{"network_interfaces": [], "version": "V1"}"#,
        ),
        (
            false,
            "PUT",
            mmds,
            r#"{"network_interfaces": ["a"], "version": "V2"}"#,
        ),
        (
            true,
            "PUT",
            "/vsock",
            r#"{"guest_cid": 3, "uds_path": "v", "vsock_id": "x"}"#,
        ),
        (
            false,
            "PUT",
            "/vsock/x",
            r#"{"guest_cid": 3, "uds_path": "v"}"#,
        ),
        (
            true,
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "s", "mem_file_path": "m"}"#,
        ),
        (
            true,
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "s", "enable_diff_snapshots": true,
                "mem_backend": {"backend_type": "File", "backend_path": "m"}}"#,
        ),
        (
            false,
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "s", "enable_diff_snapshots": false,
                "mem_backend": {"backend_type": "File", "backend_path": "m"}}"#,
        ),
        // A body that is none.
        (
            false,
            "PUT",
            machine,
            r#"{"vcpu_count": 1, "cpu_template": "T2"}"#,
        ),
    ] {
        assert_eq!(
            is_deprecated(method, path, body),
            expected,
            "{method} {path} {body}"
        );
    }
}
