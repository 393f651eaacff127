//! From what has been configured to a machine that runs.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use api::command::{Fault, State};
use api::types::VmConfig;
use arch::kernel::Protocol;

use super::{Control, chain, convert, whole};
use crate::config::{Config, ConsoleKind, Device, Payload};
use crate::stage::{Made, Order, OrderError, Origin};

/// What a guest is told if nobody says otherwise: the words that clients of this API count on.
const DEFAULT_WORDS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
                             i8042.dumbkbd swiotlb=noforce";

impl Control {
    /// Builds the machine and starts it. If that fails, all is as before.
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        let asked = Instant::now();
        let order = self.order(asked).map_err(cannot_start)?;
        let started = self.orders.start(order);
        match started {
            Ok(machine) => {
                self.machine = Some(machine);
                self.set_state(State::Running);
                Ok(())
            }
            Err(error) => {
                if let OrderError::Build(_) = error {
                    self.make_again();
                }
                Err(cannot_start(chain(&error)))
            }
        }
    }

    fn order(&mut self, asked: Instant) -> Result<Order, String> {
        let payload = self.payload()?;
        let console = self.face.console(self.resources.serial.as_ref())?;
        let (config, devices) = match self.collect(|_| ()) {
            Ok(collected) => collected,
            Err(why) => {
                self.make_again();
                return Err(why);
            }
        };
        Ok(Order {
            asked,
            config,
            origin: Origin::Boot(payload),
            console,
            devices,
        })
    }

    fn payload(&mut self) -> Result<Payload, String> {
        let source = self.resources.boot_source.as_ref();
        let source = source.ok_or("there is no kernel: PUT /boot-source first")?;
        let kernel = self.face.kernel(Path::new(&source.kernel_image_path))?;
        let open = |path: &String| {
            File::open(path)
                .map_err(|error| format!("The initrd file cannot be opened: {error} {path}"))
        };
        let initrd = source.initrd_path.as_ref().map(open).transpose()?;
        Ok(Payload::Kernel {
            kernel,
            initrd,
            cmdline: self.command_line(source.boot_args.as_deref()),
            protocol: Protocol::Linux64,
        })
    }

    /// What was put, and what only the monitor knows: whether there is PCI, and where the root is.
    fn command_line(&self, words: Option<&str>) -> String {
        let mut line = words.unwrap_or(DEFAULT_WORDS).to_owned();
        let mut add = |word: &str| {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        };
        if !self.settings.pci {
            add("pci=off");
        }
        if let Some(root) = whole::root_words(&self.resources.document()) {
            add(&root);
        }
        line
    }

    /// The machine with all devices, and the devices, in the order in which the guest finds them. Those that are made
    /// for it are made as `change` has them.
    pub(super) fn collect(
        &mut self,
        change: impl Fn(&mut Device),
    ) -> Result<(Config, Vec<Made>), String> {
        let document = self.resources.document();
        let mut config = self.config(&document)?;
        let devices = whole::devices(&document, Some(&self.settings.mmds));
        let mut all = Vec::new();
        for mut device in devices.map_err(|fault| fault.message)? {
            change(&mut device);
            let id = device.id();
            let made = match self.resources.take_made(&id) {
                Some(made) => made,
                None => (self.maker.make(&device))
                    .map_err(|error| format!("Cannot make the {id}: {}", chain(&error)))?,
            };
            all.push(made);
            config = (config.with_device(device)).map_err(|error| error.to_string())?;
        }
        Ok((config, all))
    }

    fn config(&self, document: &VmConfig) -> Result<Config, String> {
        let machine = &document.machine_config;
        let memory = machine.mem_size_mib.saturating_mul(convert::MIB);
        let config = Config::new(machine.vcpu_count.into(), memory)
            .and_then(|config| {
                config
                    .with_kvm_device(&self.settings.kvm_device)
                    .with_boot_timer(self.settings.boot_timer)
                    .with_keyboard(true)
                    .with_pci(self.settings.pci)
            })
            .and_then(|config| config.with_console(ConsoleKind::Serial))
            .map_err(|error| error.to_string())?;
        whole::machine(config, document).map_err(|fault| fault.message)
    }

    /// Makes what went with a machine that could not be started. What cannot be made now is made at the
    /// next start, which says what is wrong.
    pub(super) fn make_again(&mut self) {
        let resources = &mut self.resources;
        for entry in &mut resources.drives {
            entry.make_again(&self.maker);
        }
        for entry in &mut resources.interfaces {
            entry.make_again(&self.maker);
        }
        if let Some(entry) = &mut resources.vsock {
            entry.make_again(&self.maker);
        }
    }
}

fn cannot_start(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot start the microVM: {why}"))
}
