//! What can be in a field, and what cannot.

use serde_json::{Value, json};

/// A field of an object.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) presence: Presence,
    /// A value that is not the default.
    pub(crate) value: Value,
    /// Values of the right type that are accepted, such as the ends of a range.
    pub(crate) good: Vec<Value>,
    /// Values of the right type that are refused.
    pub(crate) bad: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Presence {
    /// It must be there.
    Required,
    /// It may be absent, but not null.
    Default,
    /// It may be absent or null, which is the same.
    Optional,
}

/// Type of a field.
pub(crate) enum Kind {
    Bool,
    Text,
    U8,
    U16,
    U32,
    U64,
    /// One of these.
    Name(&'static [&'static str]),
    /// An object.
    Object(Vec<Field>),
    /// A list of such.
    List(Box<Kind>),
}

impl Field {
    pub(crate) fn good(mut self, values: &[Value]) -> Self {
        self.good.extend_from_slice(values);
        self
    }

    pub(crate) fn bad(mut self, values: &[Value]) -> Self {
        self.bad.extend_from_slice(values);
        self
    }
}

fn field(presence: Presence, name: &'static str, kind: Kind, value: Value) -> Field {
    Field {
        name,
        kind,
        presence,
        value,
        good: Vec::new(),
        bad: Vec::new(),
    }
}

pub(crate) fn required(name: &'static str, kind: Kind, value: Value) -> Field {
    field(Presence::Required, name, kind, value)
}

pub(crate) fn default(name: &'static str, kind: Kind, value: Value) -> Field {
    field(Presence::Default, name, kind, value)
}

pub(crate) fn optional(name: &'static str, kind: Kind, value: Value) -> Field {
    field(Presence::Optional, name, kind, value)
}

/// An object with a value in each of these fields.
pub(crate) fn filled(fields: &[Field]) -> Value {
    let pairs = fields
        .iter()
        .map(|field| (field.name.to_owned(), field.value.clone()));
    Value::Object(pairs.collect())
}

impl Kind {
    /// Values that are not of this type, or not in its range. `value` is one that is.
    pub(crate) fn wrong(&self, value: &Value) -> Vec<Value> {
        let number = |max: u64| {
            let mut wrong = vec![json!(-1), json!(1.5), json!(1.0), json!("1"), json!(true)];
            if let Some(more) = max.checked_add(1) {
                wrong.push(json!(more));
            }
            wrong.push(json!(1e20));
            wrong.extend([json!([1]), json!({})]);
            wrong
        };
        match self {
            Self::Bool => vec![json!(0), json!("true"), json!([]), json!([true]), json!({})],
            Self::Text => vec![json!(1), json!(false), json!([]), json!(["x"]), json!({})],
            Self::U8 => number(u64::from(u8::MAX)),
            Self::U16 => number(u64::from(u16::MAX)),
            Self::U32 => number(u64::from(u32::MAX)),
            Self::U64 => number(u64::MAX),
            Self::Name(names) => {
                let mut wrong = vec![json!(""), json!("no such"), json!(1), json!([]), json!({})];
                for name in *names {
                    // serde takes it for the name.
                    wrong.push(json!({ *name: null }));
                    wrong.push(json!([name]));
                    wrong.push(json!(format!("{name} ")));
                    let other = match name.to_lowercase() {
                        lower if lower == *name => name.to_uppercase(),
                        lower => lower,
                    };
                    wrong.push(json!(other));
                }
                wrong
            }
            Self::Object(fields) => {
                let in_order: Vec<_> = fields.iter().map(|field| field.value.clone()).collect();
                let mut wrong = vec![
                    json!(1),
                    json!("x"),
                    json!(true),
                    json!([]),
                    json!(in_order),
                ];
                for (_, body) in mutations(fields, value) {
                    wrong.push(body);
                }
                wrong
            }
            Self::List(kind) => {
                let mut wrong = vec![json!(1), json!("x"), json!({}), json!([null])];
                let element = &value[0];
                wrong.extend(kind.wrong(element).into_iter().map(|value| json!([value])));
                wrong
            }
        }
    }
}

/// Objects that must be refused, each `body` with one mistake, and the field that it is in.
pub(crate) fn mutations(fields: &[Field], body: &Value) -> Vec<(&'static str, Value)> {
    let with = |name: &str, value: &Value| {
        let mut body = body.clone();
        body[name] = value.clone();
        body
    };
    let mut wrong = vec![("unknown", with("unknown", &json!(1)))];
    for field in fields {
        if field.presence == Presence::Required {
            let mut body = body.clone();
            body.as_object_mut().unwrap().remove(field.name);
            wrong.push((field.name, body));
        }
        if field.presence != Presence::Optional {
            wrong.push((field.name, with(field.name, &Value::Null)));
        }
        for value in field.kind.wrong(&field.value).iter().chain(&field.bad) {
            wrong.push((field.name, with(field.name, value)));
        }
    }
    wrong
}
