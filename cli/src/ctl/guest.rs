//! A guest, as its monitor's entry says it is.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use api::client::{self, Answer, Upgraded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use super::{ANSWER_LIMIT, Error, host};
use crate::rundir::{self, Info, RunDir};

/// One whose monitor lived a moment ago.
#[derive(Clone, Debug)]
pub(super) struct Guest(pub(super) Info);

impl Guest {
    /// All that there are.
    pub(super) fn all() -> Result<Vec<Self>, Error> {
        let (alive, _) = list()?;
        Ok(alive.into_iter().map(Self).collect())
    }

    /// The one of this name, or whose name alone begins so.
    pub(super) fn find(prefix: &str) -> Result<Self, Error> {
        let (alive, dead) = list()?;
        choose(prefix, alive, &dead).map(Self)
    }

    /// The same of several, with one look.
    pub(super) fn find_each(prefixes: &[String]) -> Vec<Result<Self, Error>> {
        match list() {
            Ok((alive, dead)) => (prefixes.iter())
                .map(|prefix| choose(prefix, alive.clone(), &dead).map(Self))
                .collect(),
            // Each has an error of its own.
            Err(_) => prefixes.iter().map(|prefix| Self::find(prefix)).collect(),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.0.id
    }

    /// Its API's socket.
    pub(super) fn socket(&self) -> Result<&Path, Error> {
        let socket = self.0.socket.as_deref();
        socket.ok_or_else(|| Error::NoApi {
            id: self.id().into(),
        })
    }

    pub(super) fn talk(&self, source: client::Error) -> Error {
        match source {
            client::Error::Refused(answer) => self.refused(&answer),
            source => Error::Talk {
                id: self.id().into(),
                source,
            },
        }
    }

    fn refused(&self, answer: &Answer) -> Error {
        let why = answer.fault();
        Error::Refused {
            id: self.id().into(),
            why: why.unwrap_or_else(|| format!("status {}", answer.status)),
        }
    }

    /// Has its monitor do something.
    pub(super) fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let body = body.map(Value::to_string);
        let body = body.as_deref().map(str::as_bytes);
        let answer = client::request(self.socket()?, method, path, body, limit)
            .map_err(|error| self.talk(error))?;
        if answer.is_success() {
            Ok(answer)
        } else {
            Err(self.refused(&answer))
        }
    }

    /// Asks its monitor for something that it has at once.
    pub(super) fn get(&self, path: &str, limit: Duration) -> Result<Value, Error> {
        let answer = self.request("GET", path, None, limit)?;
        serde_json::from_slice(&answer.body).map_err(|_| Error::Nonsense {
            id: self.id().into(),
            what: path.into(),
        })
    }

    /// Its state: `Not started`, `Running` or `Paused`.
    pub(super) fn state(&self, limit: Duration) -> Result<String, Error> {
        let instance = self.get("/", limit)?;
        let state = instance.get("state").and_then(Value::as_str);
        state.map(str::to_owned).ok_or_else(|| Error::Nonsense {
            id: self.id().into(),
            what: "/".into(),
        })
    }

    /// Has its monitor do one of its actions.
    pub(super) fn act(&self, action: &str) -> Result<(), Error> {
        let body = json!({ "action_type": action });
        self.request("PUT", "/actions", Some(&body), ANSWER_LIMIT)?;
        Ok(())
    }

    /// Its console: bytes, or frames of them.
    pub(super) fn console(&self, protocol: &str) -> Result<Upgraded, Error> {
        client::upgrade(self.socket()?, "/console", protocol, ANSWER_LIMIT)
            .map_err(|error| self.talk(error))
    }

    /// How long its monitor has been there.
    pub(super) fn uptime(&self) -> Duration {
        Duration::from_millis(rundir::now_ms().saturating_sub(self.0.started_ms))
    }

    /// Its monitor's process; None if that has ended.
    pub(super) fn process(&self) -> Result<Option<Process>, Error> {
        let Some(pid) = i32::try_from(self.0.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => {
                return Err(host("find", format!("process {}", self.0.pid))(
                    errno.into(),
                ));
            }
        };
        // Of what was opened, which does not change any more.
        let is_same = rundir::start_ticks(self.0.pid) == Some(self.0.start_ticks);
        Ok(is_same.then_some(Process(pidfd)))
    }
}

/// A process that cannot be mistaken for another one.
#[derive(Debug)]
pub(super) struct Process(pub(super) OwnedFd);

impl Process {
    /// Sends it a signal. It may have ended.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.0, signal);
    }

    /// Waits for its end; false if that has not come in time.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return false,
                Err(Errno::INTR) => {}
                // What cannot be waited for is taken for ended: whoever asks looks again.
                Ok(_) | Err(_) => return true,
            }
        }
    }
}

fn list() -> Result<(Vec<Info>, Vec<String>), Error> {
    match RunDir::find()? {
        Some(directory) => Ok(directory.list()?),
        // Nobody has made it yet.
        None => Ok((Vec::new(), Vec::new())),
    }
}

fn choose(prefix: &str, mut alive: Vec<Info>, dead: &[String]) -> Result<Info, Error> {
    if let Some(index) = alive.iter().position(|info| info.id == prefix) {
        return Ok(alive.swap_remove(index));
    }
    if dead.iter().any(|id| id == prefix) {
        return Err(Error::Dead { id: prefix.into() });
    }
    let begins = |info: &Info| !prefix.is_empty() && info.id.starts_with(prefix);
    let (mut matching, others): (Vec<_>, Vec<_>) = alive.into_iter().partition(begins);
    let ids = |infos: Vec<Info>| infos.into_iter().map(|info| info.id).collect();
    match matching.len() {
        0 => Err(Error::NoSuchGuest {
            id: prefix.into(),
            there: ids(others),
        }),
        1 => Ok(matching.swap_remove(0)),
        _ => Err(Error::Ambiguous {
            prefix: prefix.into(),
            ids: ids(matching),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rundir::Kind;

    fn info(id: &str) -> Info {
        Info {
            id: id.into(),
            kind: Kind::Vmm,
            pid: 1,
            start_ticks: 0,
            started_ms: 0,
            socket: None,
            log: None,
            command: Vec::new(),
        }
    }

    #[test]
    fn a_name_may_be_cut_short_as_long_as_it_is_clear() {
        let choose = |prefix| {
            let alive = ["db", "db-1", "web"].map(info).to_vec();
            choose(prefix, alive, &["gone".into()]).map(|info| info.id)
        };
        assert_eq!(choose("db").unwrap(), "db");
        assert_eq!(choose("db-").unwrap(), "db-1");
        assert_eq!(choose("w").unwrap(), "web");
        let error = choose("d").unwrap_err().to_string();
        assert_eq!(error, "'d' may be any of db, db-1");
        for nobody in ["x", "", "webs"] {
            let error = choose(nobody).unwrap_err().to_string();
            assert!(error.contains("there are db, db-1, web"), "{error}");
        }
        assert!(choose("gone").unwrap_err().to_string().contains("is dead"));
    }
}
