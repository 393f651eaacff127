//! How devices are changed and looked at while the guest runs.

use std::collections::BTreeMap;

use devices::backend::user_backend::UserNetControl;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::block::BlockControl;
use devices::virtio::console::ConsoleControl;
use devices::virtio::net::NetControl;
use devices::virtio::rng::RngControl;

/// The controls of a machine's devices, by their ids.
#[derive(Clone, Default)]
pub struct Controls {
    /// Disks.
    pub disks: BTreeMap<String, BlockControl>,
    /// Network cards.
    pub cards: BTreeMap<String, NetControl>,
    /// User networks, by the ids of their cards.
    pub user_networks: BTreeMap<String, UserNetControl>,
    /// The balloon.
    pub balloon: Option<BalloonControl>,
    /// The entropy device.
    pub entropy: Option<RngControl>,
    /// The virtio console.
    pub console: Option<ConsoleControl>,
}
