//! The guest's metadata: the document, and the interfaces that lead to it.

use std::sync::Arc;

use api::command::Fault;
use api::types::MmdsConfig;
use devices::mmds::{Mmds, StoreError};
use serde_json::Value;

use super::resources::Entry;
use super::{Control, convert};

impl Control {
    /// The metadata, in a state in which it can be asked for: before the start, or if the guest can reach it.
    fn metadata(&self) -> Result<&Arc<Mmds>, Fault> {
        if self.machine.is_some() && self.resources.mmds_config.is_none() {
            return Err(Fault::bad(
                "The MMDS data store is not initialized: no network interface leads to it, and that cannot \
                 be changed after the start",
            ));
        }
        Ok(&self.settings.mmds)
    }

    pub(super) fn put_metadata(&self, document: Value) -> Result<(), Fault> {
        self.metadata()?
            .put(document)
            .map_err(|error| refused(&error))
    }

    pub(super) fn patch_metadata(&self, patch: &Value) -> Result<(), Fault> {
        self.metadata()?
            .patch(patch)
            .map_err(|error| refused(&error))
    }

    pub(super) fn get_metadata(&self) -> Result<Value, Fault> {
        let document = self.metadata()?.get();
        Ok(document.unwrap_or_else(|| Value::Object(serde_json::Map::new())))
    }

    /// Has the named interfaces lead to the metadata, and no others.
    pub(super) fn put_metadata_config(&mut self, config: MmdsConfig) -> Result<(), Fault> {
        let interfaces = &mut self.resources.interfaces;
        let is_known = |id: &String| {
            interfaces
                .iter()
                .any(|entry| entry.wire.wire.iface_id == *id)
        };
        if !config.network_interfaces.iter().all(is_known) {
            return Err(unknown_interface());
        }
        self.settings
            .mmds
            .set_config(convert::metadata_config(&config));
        for Entry { wire, made } in interfaces {
            let leads = config.network_interfaces.contains(&wire.wire.iface_id);
            let mmds = leads.then(|| Arc::clone(&self.settings.mmds));
            // One that leads there already may have another address now.
            if leads || wire.mmds.is_some() {
                *made = None;
            }
            wire.mmds = mmds;
        }
        self.resources.mmds_config = Some(config);
        // What cannot be made now is made at the start, which says what is wrong.
        self.make_again();
        Ok(())
    }
}

pub(super) fn unknown_interface() -> Fault {
    Fault::bad(
        "The list of network interface IDs provided contains at least one ID that does not correspond to any \
         existing network interface.",
    )
}

fn refused(error: &StoreError) -> Fault {
    match error {
        StoreError::TooLarge { .. } => Fault::too_large(error.to_string()),
        StoreError::NotInitialized => Fault::bad(error.to_string()),
    }
}
