use std::sync::Barrier;

use serde_json::json;

use super::*;

fn store(limit: usize, value: Value) -> Store {
    let store = Store::new(limit);
    store.put(value).unwrap();
    store
}

#[track_caller]
fn assert_holds(store: &Store, value: &Value) {
    assert_eq!(store.snapshot().as_deref(), Some(value));
}

#[test]
fn nothing_can_be_patched_before_something_is_put() {
    let store = Store::new(100);
    assert_eq!(store.snapshot(), None);
    let error = store.patch(&json!({})).unwrap_err();
    assert_eq!(error, StoreError::NotInitialized);
    let text = "The MMDS data store is not initialized.";
    assert_eq!(error.to_string(), text);
    // Null is a document like any other.
    store.put(Value::Null).unwrap();
    store.patch(&json!({"a": 1})).unwrap();
    assert_holds(&store, &json!({"a": 1}));
}

/// The examples of RFC 7396, appendix A.
#[test]
fn patches_merge_as_the_rfc_has_it() {
    let cases = [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
        (json!({"a":"b"}), json!({"a":null}), json!({})),
        (
            json!({"a":"b","b":"c"}),
            json!({"a":null}),
            json!({"b":"c"}),
        ),
        (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
        (
            json!({"a":{"b":"c"}}),
            json!({"a":{"b":"d","c":null}}),
            json!({"a":{"b":"d"}}),
        ),
        (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a":"b"}), json!(["c"]), json!(["c"])),
        (json!({"a":"foo"}), json!(null), json!(null)),
        (json!({"a":"foo"}), json!("bar"), json!("bar")),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
        (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
        (
            json!({}),
            json!({"a":{"bb":{"ccc":null}}}),
            json!({"a":{"bb":{}}}),
        ),
    ];
    for (target, patch, result) in cases {
        let store = store(1000, target.clone());
        store.patch(&patch).unwrap();
        let merged = store.snapshot().unwrap();
        assert_eq!(*merged, result, "{target} {patch}");
    }
}

#[test]
fn what_is_too_large_changes_nothing() {
    // {"a":"…"} has 8 bytes more than the text.
    let text = |len: usize| "x".repeat(len);
    let store = store(20, json!({"a": text(12)}));
    let too_large = Err(StoreError::TooLarge { limit: 20 });
    assert_eq!(store.put(json!({"a": text(13)})), too_large);
    assert_eq!(store.patch(&json!({"a": text(13)})), too_large);
    assert_eq!(store.patch(&json!({"b": 1})), too_large);
    assert_holds(&store, &json!({"a": text(12)}));
    // The result counts, not the patch.
    store.patch(&json!({"a": null, "b": text(12)})).unwrap();
    store.patch(&json!({"no": null, "neither": null})).unwrap();
    assert_holds(&store, &json!({"b": text(12)}));
    // Bytes, and as JSON writes them.
    assert_eq!(store.put(json!("é".repeat(10))), too_large);
    store.put(json!("é".repeat(9))).unwrap();
    assert_eq!(store.put(json!("\n".repeat(10))), too_large);
    assert_eq!(
        Store::new(0).put(json!(1)),
        Err(StoreError::TooLarge { limit: 0 })
    );
}

#[test]
fn patches_at_the_same_time_are_all_there() {
    const THREADS: usize = 4;
    const PATCHES: usize = 50;
    let store = store(100_000, json!({}));
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, start) = (&store, &start);
            scope.spawn(move || {
                start.wait();
                for number in 0..PATCHES {
                    store
                        .patch(&json!({format!("{thread}-{number}"): 1}))
                        .unwrap();
                }
            });
        }
    });
    let value = store.snapshot().unwrap();
    assert_eq!(value.as_object().unwrap().len(), THREADS * PATCHES);
}

#[test]
fn readers_do_not_wait_for_writers() {
    let store = store(100, json!(1));
    let _patching = lock(&store.writing);
    assert_holds(&store, &json!(1));
}
