use super::*;

const SMALL: &str = r#"
name = "x"
about = "a program"
kind = "process"
run = ["${program}", "${token}", "${mode}"]
"#;

fn error(text: &str) -> String {
    Adapter::parse(text, "x.toml").unwrap_err().to_string()
}

#[test]
fn a_small_one_has_defaults() {
    let adapter = Adapter::parse(SMALL, "x.toml").unwrap();
    assert_eq!(adapter.status, PROGRAM_STATUS);
    assert_eq!(adapter.kind, Kind::Process);
    assert!(!adapter.noisy && adapter.requests.is_empty());
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let unknown = error(&format!("{SMALL}\ncolour = \"red\""));
    assert!(
        unknown.contains("x.toml: line 7: ") && unknown.contains("colour"),
        "{unknown}"
    );
    let place = error(&SMALL.replace("${token}", "${tokn}"));
    assert!(
        place.contains("run has the unknown place ${tokn}"),
        "{place}"
    );
    for name in ["", "a/b", "..", "a b", &"x".repeat(33)] {
        let name = error(&SMALL.replace("\"x\"", &format!("{name:?}")));
        assert!(name.contains("name is 1 to 32"), "{name}");
    }
    let empty = error(&SMALL.replace(r#"["${program}", "${token}", "${mode}"]"#, "[]"));
    assert!(empty.contains("names no program"), "{empty}");
    let long = error(&format!("{SMALL}\ninput = {:?}", "x".repeat(4097)));
    assert!(long.contains("input is longer than 4096 bytes"), "{long}");
    for path in ["/etc/passwd", "../x", "a/../../x", ""] {
        let file = error(&format!("{SMALL}\n[files]\n{path:?} = \"\""));
        assert!(file.contains("leaves the directory"), "{file}");
    }
}

#[test]
fn those_that_mote_has_can_be_used_and_are_named_by_their_files() {
    for (name, text) in BUILT_IN {
        let adapter = Adapter::parse(text, name).unwrap();
        assert_eq!(adapter.name, *name);
        assert_eq!(built_in(name).as_ref(), Some(&adapter));
    }
}

#[test]
fn those_that_mote_has_suit_the_schema() {
    let schema = crate::schema::adapter();
    let validator = jsonschema::validator_for(schema.as_value()).unwrap();
    for (name, text) in BUILT_IN {
        let value: serde_json::Value = toml::from_str(text).unwrap();
        let faults: Vec<_> = validator.iter_errors(&value).collect();
        assert!(faults.is_empty(), "{name}: {faults:?}");
    }
}
