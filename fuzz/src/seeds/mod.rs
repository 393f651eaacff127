//! Inputs that a fuzzer starts from: what a driver that works would do, written in the bytes that the
//! guests of this crate are made of. `cargo run --example seeds` writes them to `seeds/`.

mod api_request;
mod block;
mod files;
mod guest;
mod mmds;
mod net;
mod pci;
mod snapshot;
mod vsock;

pub(crate) use snapshot::state as machine;

/// Inputs of a target, each with its name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// A target's function that makes its seeds.
pub type Maker = fn() -> Seeds;

/// The targets whose seeds are made here.
pub const TARGETS: [(&str, Maker); 15] = [
    ("transport", guest::transport),
    ("balloon", guest::balloon),
    ("console", guest::console),
    ("pci", pci::pci),
    ("block", block::block),
    ("net", net::net),
    ("mmds", mmds::mmds),
    ("qcow2", block::qcow2),
    ("vsock", vsock::vsock),
    ("api_request", api_request::api_request),
    ("pmem", guest::pmem),
    ("mem", guest::mem),
    ("snapshot", snapshot::snapshot),
    ("merge", files::merge),
    ("working_set", files::working_set),
];

/// Bytes that are made up one after the other, the other way round from [`crate::Input`].
#[derive(Clone, Default)]
struct Script(Vec<u8>);

impl Script {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}
