//! Schemas of what is a string on the wire and something else here.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::types::{Bitmap, KvmCapability, LogLevel, MacAddress, Overlay};

/// A number of 32 bits in a string.
pub(crate) struct Number;

macro_rules! inline {
    ($([$($generics:tt)*] $type:ty: $schema:tt;)+) => { $(
        impl<$($generics)*> JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )+ };
}

inline! {
    [] Number: {
        "type": "string",
        "pattern": "^(0x[0-9a-fA-F]{1,8}|0b[01]{1,32}|[0-9]{1,9})$",
        "examples": ["0x1f", "0b11111", "31"],
    };
    [] KvmCapability: {
        "type": "string",
        "pattern": "^!?[0-9]{1,9}$",
        "examples": ["171", "!172"],
    };
    [const BITS: usize] Bitmap<BITS>: {
        "type": "string",
        "pattern": format!("^(0b)?_*([01x]_*){{0,{BITS}}}$"),
        "examples": ["0b1x00", "xxxx_0001"],
    };
    [] LogLevel: {
        "type": "string",
        "pattern": "^(?:[oO][fF][fF]|[eE][rR][rR][oO][rR]|[wW][aA][rR][nN]([iI][nN][gG])?|[iI][nN][fF][oO]|[dD][eE][bB][uU][gG]|[tT][rR][aA][cC][eE])$",
        "examples": ["Off", "Error", "Warning", "Info", "Debug", "Trace"],
    };
    [] MacAddress: {
        "type": "string",
        "pattern": "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$",
        "examples": ["06:00:ac:10:00:02"],
    };
    [] Overlay: {
        "type": "string",
        "minLength": 1,
        "examples": ["none", "temp", "/var/lib/guest/overlay.qcow2"],
    };
}
