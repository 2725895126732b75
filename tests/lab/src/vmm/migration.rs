//! Migrations of a monitor: setting parameters, starting a migration, and following it to its end.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Vmm;
use crate::error::{Error, Result};

/// A unix socket as a channel of this type, as `migrate` and QEMU's `-incoming` take it.
pub fn unix_channel(kind: &str, path: &Path) -> Value {
    json!({ "channel-type": kind, "addr": { "transport": "socket", "type": "unix", "path": path } })
}

impl Vmm {
    /// Sets whether a QEMU, as the source of its next migration, has a return path (capability `return-path`).
    ///
    /// # Errors
    /// QEMU's refusal.
    pub fn listen(&mut self, listens: bool) -> Result<()> {
        let capability = json!({ "capabilities": [{ "capability": "return-path", "state": listens }] });
        self.qmp.execute("migrate-set-capabilities", capability).map(|_| ())
    }

    /// Sets the number and compression of the page channels of the next migration.
    ///
    /// # Errors
    /// The monitor's refusal.
    pub fn set_channels(&mut self, number: u8, compression: &str) -> Result<()> {
        self.enable("multifd")?;
        let parameters = json!({ "multifd-channels": number, "multifd-compression": compression });
        self.qmp.execute("migrate-set-parameters", parameters).map(|_| ())
    }

    /// Starts an outgoing migration.
    ///
    /// # Errors
    /// The monitor's refusal.
    pub fn start_migration(&mut self, uri: &str) -> Result<()> {
        self.qmp.execute("migrate", json!({ "uri": uri })).map(|_| ())
    }

    /// Starts to hand the guest over in mode `cpr-transfer`, with these sockets for the migration and for the descriptors.
    ///
    /// # Errors
    /// The monitor's refusal.
    pub fn start_transfer(&mut self, main: &Path, cpr: &Path) -> Result<()> {
        self.qmp.execute("migrate-set-parameters", json!({ "mode": "cpr-transfer" }))?;
        let channels = [unix_channel("main", main), unix_channel("cpr", cpr)];
        self.qmp.execute("migrate", json!({ "channels": channels })).map(|_| ())
    }

    /// Allows post-copy in the next migration, on either side.
    ///
    /// # Errors
    /// The monitor's refusal.
    pub fn allow_postcopy(&mut self) -> Result<()> {
        self.enable("postcopy-ram")
    }

    /// Lets requested pages go on a second connection in the next post-copy migration, on either side.
    ///
    /// # Errors
    /// The monitor's refusal, as without [`allow_postcopy`](Self::allow_postcopy).
    pub fn allow_preempt(&mut self) -> Result<()> {
        self.enable("postcopy-preempt")
    }

    fn enable(&mut self, capability: &str) -> Result<()> {
        let capability = json!({ "capabilities": [{ "capability": capability, "state": true }] });
        self.qmp.execute("migrate-set-capabilities", capability).map(|_| ())
    }

    /// Starts an outgoing migration that switches to post-copy at once, which must be [allowed](Self::allow_postcopy).
    ///
    /// # Errors
    /// The monitor's refusal.
    pub fn start_postcopy(&mut self, uri: &str) -> Result<()> {
        self.start_migration(uri)?;
        // QEMU accepts the command once the capability is on and a migration has begun (`qmp_migrate_start_postcopy`).
        self.qmp.execute("migrate-start-postcopy", Value::Null).map(|_| ())
    }

    /// Follows the outgoing migration to its end and returns its last figures, whatever its `status`.
    ///
    /// # Errors
    /// When it has not ended at `deadline`, or the monitor does not answer.
    pub fn follow_migration(&mut self, deadline: Instant, mut watch: impl FnMut(&Value)) -> Result<Value> {
        loop {
            let info = self.qmp.execute("query-migrate", Value::Null)?;
            let ends = ["completed", "failed", "cancelled", "unacknowledged", "undecided"];
            if info["status"].as_str().is_some_and(|status| ends.contains(&status)) {
                return Ok(info);
            }
            watch(&info);
            if Instant::now() > deadline {
                return Err(Error::failed(format!("the migration did not end in time: {info}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
