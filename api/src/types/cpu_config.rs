//! `/cpu-config`: changes of CPUID and MSRs.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Validate;
use super::shape::{or_default, wire};

/// What the guest's CPUs are to be, against what the host's are. Without contents it changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct CpuConfig {
    /// Capabilities of KVM to require, or not to.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[cfg_attr(test, schemars(with = "Option<Vec<KvmCapability>>"))]
    pub kvm_capabilities: Vec<KvmCapability>,
    /// Changes of CPUID, in this order.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[cfg_attr(test, schemars(with = "Option<Vec<CpuidModifier>>"))]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes of MSRs, in this order.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[cfg_attr(test, schemars(with = "Option<Vec<MsrModifier>>"))]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// Changes of a leaf of CPUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct CpuidModifier {
    /// Leaf.
    #[serde(with = "number")]
    #[cfg_attr(test, schemars(with = "crate::openapi::schemas::Number"))]
    pub leaf: u32,
    /// Subleaf.
    #[serde(with = "number")]
    #[cfg_attr(test, schemars(with = "crate::openapi::schemas::Number"))]
    pub subleaf: u32,
    /// KVM's flags of the entry: 1, the subleaf counts.
    pub flags: u32,
    /// Changes of its registers.
    pub modifiers: Vec<RegisterModifier>,
}

/// Change of a register of a leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RegisterModifier {
    /// Which one.
    pub register: CpuidRegister,
    /// Its bits.
    pub bitmap: Bitmap<32>,
}

/// Registers that CPUID gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", rename_all = "lowercase")]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Change of an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MsrModifier {
    /// Its number.
    #[serde(with = "number")]
    #[cfg_attr(test, schemars(with = "crate::openapi::schemas::Number"))]
    pub addr: u32,
    /// Its bits.
    pub bitmap: Bitmap<64>,
}

/// A capability of KVM, by its number: `171`, or `!171`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmCapability {
    /// The host must have it.
    Require(u32),
    /// The host need not have it, whatever is required otherwise.
    Waive(u32),
}

/// Bits of a register of `BITS` bits: written from the highest, `0` clears, `1` sets, `x` leaves as it is.
///
/// Fewer digits than bits leave the upper ones as they are. `_` may be anywhere, and `0b` in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmap<const BITS: usize> {
    /// Bits that change.
    pub mask: u64,
    /// What they become; the others are 0.
    pub value: u64,
}

/// A configuration, or the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum CpuConfigSource {
    /// The configuration.
    Inline(CpuConfig),
    /// A file of the host with a JSON object of that kind.
    File(String),
}

wire!(Object: CpuConfig, CpuidModifier, RegisterModifier, MsrModifier);
wire!(Text: CpuidRegister);

impl<const BITS: usize> Bitmap<BITS> {
    /// What the register becomes.
    pub fn apply(self, register: u64) -> u64 {
        register & !self.mask | self.value
    }
}

impl<const BITS: usize> FromStr for Bitmap<BITS> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bits = Self { mask: 0, value: 0 };
        let mut digits = 0;
        for digit in text.strip_prefix("0b").unwrap_or(text).chars() {
            let (mask, value) = match digit {
                '_' => continue,
                'x' => (0, 0),
                '0' => (1, 0),
                '1' => (1, 1),
                _ => {
                    return Err(format!(
                        "The bitmap {text:?} has the character {digit:?}: write 0, 1, x or _"
                    ));
                }
            };
            digits += 1;
            if digits > BITS {
                return Err(format!("The bitmap {text:?} has more than {BITS} digits"));
            }
            bits.mask = bits.mask << 1 | mask;
            bits.value = bits.value << 1 | value;
        }
        Ok(bits)
    }
}

impl<const BITS: usize> fmt::Display for Bitmap<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0b")?;
        for bit in (0..BITS).rev() {
            let is_set = |bits: u64| bits >> bit & 1 == 1;
            f.write_str(match (is_set(self.mask), is_set(self.value)) {
                (false, _) => "x",
                (true, false) => "0",
                (true, true) => "1",
            })?;
        }
        Ok(())
    }
}

impl FromStr for KvmCapability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, digits): (fn(u32) -> Self, _) = match text.strip_prefix('!') {
            Some(digits) => (Self::Waive, digits),
            None => (Self::Require, text),
        };
        number::parse(digits, 10).map(kind).ok_or_else(|| {
            format!("{text:?} is no capability of KVM: write its number, or ! and its number")
        })
    }
}

impl fmt::Display for KvmCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Require(number) => write!(f, "{number}"),
            Self::Waive(number) => write!(f, "!{number}"),
        }
    }
}

/// Strings on the wire that are something else here.
macro_rules! as_string {
    ($([$($generics:tt)*] $name:ty),+) => { $(
        impl<$($generics)*> Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de, $($generics)*> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )+ };
}

as_string!([] KvmCapability, [const BITS: usize] Bitmap<BITS>);

/// Numbers in strings: `0x1f`, `0b11111`, `31`.
mod number {
    use super::{Deserialize, Deserializer, Serializer};
    use serde::de::Error as _;

    /// Digits without a sign, which the standard library allows.
    pub(super) fn parse(digits: &str, radix: u32) -> Option<u32> {
        if digits.starts_with('+') {
            return None;
        }
        u32::from_str_radix(digits, radix).ok()
    }

    pub(super) fn serialize<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:#x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (digits, radix) = if let Some(digits) = text.strip_prefix("0x") {
            (digits, 16)
        } else if let Some(digits) = text.strip_prefix("0b") {
            (digits, 2)
        } else {
            (text.as_str(), 10)
        };
        parse(digits, radix).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no number of 32 bits: write 0x1f, 0b11111 or 31"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for CpuConfigSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;

        impl<'de> Visitor<'de> for Source {
            type Value = CpuConfigSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, or the path of a file with one")
            }

            fn visit_str<E>(self, path: &str) -> Result<CpuConfigSource, E> {
                Ok(CpuConfigSource::File(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CpuConfigSource, A::Error> {
                CpuConfig::deserialize(MapAccessDeserializer::new(map)).map(CpuConfigSource::Inline)
            }
        }

        deserializer.deserialize_any(Source)
    }
}

impl Validate for CpuConfig {}
