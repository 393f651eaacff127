use std::time::Duration;

use serde_json::json;

use super::*;
use crate::mmds::{Counters, MmdsConfig};

fn mmds(version: Version) -> Mmds {
    let mmds = Mmds::new("test", 10_000).unwrap();
    mmds.set_config(MmdsConfig {
        version,
        ..MmdsConfig::default()
    });
    mmds.put(json!({
        "name": {"first": "Ada", "last": "Lovelace"},
        "age": 36,
        "empty": {},
        "text": "line\nline",
        "list": ["zero", {"one": 1}],
        "yes": true,
        "nothing": null,
        "a/b": "slash",
        "m~n": "tilde",
        "": {"": "nameless"},
    }))
    .unwrap();
    mmds
}

fn ask(mmds: &Mmds, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
    let request = Request {
        method,
        target,
        headers,
    };
    answer(mmds, request, Instant::now())
}

const JSON: (&str, &str) = ("Accept", "application/json");

#[test]
fn paths_are_pointers() {
    let mmds = mmds(Version::V1);
    let cases = [
        ("/name/first", Some("\"Ada\"")),
        ("/name/first/", Some("\"Ada\"")),
        ("//name///first//", Some("\"Ada\"")),
        ("/name", Some(r#"{"first":"Ada","last":"Lovelace"}"#)),
        ("/age", Some("36")),
        ("/list/0", Some("\"zero\"")),
        ("/list/1/one", Some("1")),
        ("/list/2", None),
        ("/list/00", None),
        ("/list/-", None),
        ("/a~1b", Some("\"slash\"")),
        ("/m~0n", Some("\"tilde\"")),
        ("/nothing", Some("null")),
        ("/name/first?x=1", None),
        ("/name/first#x", None),
        ("/Name", None),
        ("/nam", None),
        ("/name/first/x", None),
        ("/age/x", None),
        ("http://169.254.169.254/name/first", Some("\"Ada\"")),
        ("HTTP://elsewhere//name/first/", Some("\"Ada\"")),
    ];
    for (target, found) in cases {
        let reply = ask(&mmds, "GET", target, &[JSON]);
        match found {
            Some(body) => {
                assert_eq!(
                    (reply.status, reply.form),
                    (Status::Ok, Form::Json),
                    "{target}"
                );
                assert_eq!(reply.body, body, "{target}");
            }
            None => {
                assert_eq!(reply.status, Status::NotFound, "{target}");
                assert!(reply.body.contains(target), "{}", reply.body);
                assert_eq!(reply.form, Form::Plain);
            }
        }
    }
    for whole in ["/", "//", "///", "http://x", "http://x/"] {
        let reply = ask(&mmds, "GET", whole, &[JSON]);
        let value: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(Some(value), mmds.get(), "{whole}");
    }
    for target in [
        "",
        "*",
        "name",
        "ftp://x/name",
        "https://x/name",
        "http:/",
        "é",
    ] {
        let reply = ask(&mmds, "GET", target, &[JSON]);
        assert_eq!(reply.status, Status::BadRequest, "{target}");
    }
}

#[test]
fn plain_text_is_keys_and_strings() {
    let mmds = mmds(Version::V1);
    let cases = [
        (
            "/",
            Ok("/\na/b\nage\nempty/\nlist\nm~n\nname/\nnothing\ntext\nyes"),
        ),
        ("/name", Ok("first\nlast")),
        ("/name/", Ok("first\nlast")),
        ("/empty", Ok("")),
        ("/text", Ok("line\nline")),
        ("/list/0", Ok("zero")),
        ("/list/1", Ok("one")),
        ("/list", Err(())),
        ("/age", Err(())),
        ("/yes", Err(())),
        ("/nothing", Err(())),
    ];
    for accept in [
        None,
        Some("text/plain"),
        Some("*/*"),
        Some("application/json, text/plain"),
    ] {
        let headers: Vec<_> = accept
            .map(|accept| ("accept", accept))
            .into_iter()
            .collect();
        for (target, body) in cases {
            let reply = ask(&mmds, "GET", target, &headers);
            assert_eq!(reply.form, Form::Plain);
            match body {
                Ok(body) => assert_eq!((reply.status, &*reply.body), (Status::Ok, body)),
                Err(()) => assert_eq!(reply.status, Status::NotImplemented, "{target}"),
            }
        }
    }
}

#[test]
fn with_imds_compat_everything_is_plain() {
    let mmds = mmds(Version::V1);
    mmds.set_config(MmdsConfig {
        imds_compat: true,
        ..MmdsConfig::default()
    });
    let reply = ask(&mmds, "GET", "/name", &[JSON]);
    assert_eq!((reply.form, &*reply.body), (Form::Plain, "first\nlast"));
    let reply = ask(&mmds, "GET", "/age", &[JSON]);
    assert_eq!(reply.status, Status::NotImplemented);
}

#[test]
fn without_a_document_there_is_null() {
    let mmds = Mmds::new("test", 100).unwrap();
    assert_eq!(mmds.get(), None);
    let reply = ask(&mmds, "GET", "/", &[JSON]);
    assert_eq!((reply.status, &*reply.body), (Status::Ok, "null"));
    assert_eq!(ask(&mmds, "GET", "/", &[]).status, Status::NotImplemented);
    assert_eq!(ask(&mmds, "GET", "/x", &[JSON]).status, Status::NotFound);
}

#[test]
fn methods_are_allowed_or_not() {
    let mmds = mmds(Version::V2);
    for method in ["PATCH", "DELETE"] {
        let reply = ask(&mmds, method, "/", &[]);
        assert_eq!(reply.status, Status::MethodNotAllowed);
        let allow = ("Allow".to_owned(), "GET, PUT".to_owned());
        assert_eq!(reply.header, Some(allow));
    }
    for method in ["POST", "HEAD", "OPTIONS", "get", "Put", "BREW"] {
        let reply = ask(&mmds, method, "/", &[]);
        assert_eq!(reply.status, Status::NotImplemented, "{method}");
    }
}

#[test]
fn a_token_is_given_to_whom_asks_properly() {
    let ttl = "X-metadata-token-ttl-seconds";
    let ec2 = "X-aws-ec2-metadata-token-ttl-seconds";
    let path = "/latest/api/token";
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Status, &'a str);
    let cases: &[Case<'_>] = &[
        (path, &[(ttl, "60")], Status::Ok, ""),
        (path, &[(ec2, "60")], Status::Ok, ""),
        (
            path,
            &[("x-METADATA-token-TTL-seconds", "1")],
            Status::Ok,
            "",
        ),
        (path, &[(ttl, "21600")], Status::Ok, ""),
        ("//latest/api//token/", &[(ttl, "60")], Status::Ok, ""),
        ("http://h/latest/api/token", &[(ttl, "60")], Status::Ok, ""),
        (path, &[(ttl, "60"), (ec2, "0")], Status::Ok, ""),
        (path, &[], Status::BadRequest, ttl),
        (path, &[], Status::BadRequest, ec2),
        (path, &[(ttl, "0")], Status::BadRequest, "from 1 to 21600"),
        (
            path,
            &[(ttl, "21601")],
            Status::BadRequest,
            "from 1 to 21600",
        ),
        (path, &[(ttl, "-1")], Status::BadRequest, "'-1'"),
        (path, &[(ttl, "4294967296")], Status::BadRequest, ttl),
        (path, &[(ec2, "1.5")], Status::BadRequest, ec2),
        (path, &[(ttl, "")], Status::BadRequest, ttl),
        (
            path,
            &[(ttl, "60"), ("x-forwarded-for", "1.2.3.4")],
            Status::BadRequest,
            "x-forwarded-for",
        ),
        (
            "/x",
            &[("X-Forwarded-For", "")],
            Status::BadRequest,
            "X-Forwarded-For",
        ),
        (
            "/latest/api",
            &[(ttl, "60")],
            Status::NotFound,
            "/latest/api",
        ),
        (
            "/latest/api/token/x",
            &[(ttl, "60")],
            Status::NotFound,
            "/latest/api/token/x",
        ),
        ("/", &[(ttl, "60")], Status::NotFound, "/"),
    ];
    for version in [Version::V1, Version::V2] {
        let mmds = mmds(version);
        for (target, headers, status, text) in cases {
            let reply = ask(&mmds, "PUT", target, headers);
            assert_eq!(reply.status, *status, "{target} {headers:?}");
            assert_eq!(reply.form, Form::Plain);
            if *status == Status::Ok {
                assert!(mmds.tokens.is_valid(&reply.body, Instant::now()));
                let (name, value) = headers[0];
                assert_eq!(reply.header, Some((name.to_owned(), value.to_owned())));
            } else {
                assert!(reply.body.contains(text), "{}", reply.body);
                assert_eq!(reply.header, None);
            }
        }
    }
}

#[test]
fn version_2_wants_a_token_and_version_1_does_not() {
    let (first, second) = mmds_pair();
    let token_of = |mmds| {
        ask(
            mmds,
            "PUT",
            "/latest/api/token",
            &[("X-metadata-token-ttl-seconds", "60")],
        )
        .body
    };
    let own = token_of(&second);
    let other = token_of(&first);
    let missing = "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token`";
    type Case<'a> = (&'a [(&'a str, &'a str)], Result<(), &'a str>, [u64; 2]);
    let cases: &[Case<'_>] = &[
        (&[], Err(missing), [1, 0]),
        (&[("Authorization", &own)], Err(missing), [1, 0]),
        (&[("X-metadata-token", &own)], Ok(()), [0, 0]),
        (&[("x-aws-EC2-metadata-token", &own)], Ok(()), [0, 0]),
        (
            &[("X-metadata-token", &other)],
            Err("MMDS token not valid."),
            [0, 1],
        ),
        (
            &[("X-metadata-token", "")],
            Err("MMDS token not valid."),
            [0, 1],
        ),
        (
            &[
                ("X-metadata-token", "x"),
                ("X-aws-ec2-metadata-token", &own),
            ],
            Err("MMDS token not valid."),
            [0, 1],
        ),
    ];
    for (headers, result, [none, bad]) in cases {
        let before = second.counters();
        let reply = ask(&second, "GET", "/name/first", headers);
        match result {
            Ok(()) => assert_eq!((reply.status, &*reply.body), (Status::Ok, "Ada")),
            Err(text) => {
                assert_eq!(reply.status, Status::Unauthorized, "{headers:?}");
                assert!(reply.body.starts_with(text), "{}", reply.body);
            }
        }
        let expected = Counters {
            rx_no_token: before.rx_no_token + none,
            rx_invalid_token: before.rx_invalid_token + bad,
            ..before
        };
        assert_eq!(second.counters(), expected);
        // With the other's tokens, version 1 counts, and answers all.
        assert_eq!(ask(&first, "GET", "/name/first", headers).body, "Ada");
    }
    let counters = first.counters();
    assert_eq!((counters.rx_no_token, counters.rx_invalid_token), (2, 4));
    // Nobody without a token learns what there is.
    assert_eq!(
        ask(&second, "GET", "/none", &[]).status,
        Status::Unauthorized
    );
    let later = Instant::now() + Duration::from_secs(61);
    let request = Request {
        method: "GET",
        target: "/",
        headers: &[("X-metadata-token", &own)],
    };
    assert_eq!(answer(&second, request, later).status, Status::Unauthorized);
}

fn mmds_pair() -> (Mmds, Mmds) {
    (mmds(Version::V1), mmds(Version::V2))
}
