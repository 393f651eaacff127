//! A monitor that serves the API, and a client that knows nothing of mote's own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::live::Live;
use crate::monitor::{self, Ended};
use crate::{DEADLINE, description};

/// How often a socket that does not exist yet is looked at.
const INTERVAL: Duration = Duration::from_millis(2);

/// What a monitor answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body; `Null` if there is none.
    pub body: Value,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(found, _)| found == name)?;
        Some(value)
    }
}

/// Sends a request on a connection of its own; `body` is sent as it is. Fails if the description of the API does not
/// have the answer.
#[track_caller]
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Answer {
    let mut stream = connect(socket);
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if let Some(body) = body {
        let length = body.len();
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {length}\r\n"
        ));
    }
    head.push_str("\r\n");
    head.push_str(body.unwrap_or_default());
    stream.write_all(head.as_bytes()).unwrap();
    let answer = read_answer(&mut BufReader::new(stream));
    description::check(method, path, &answer);
    answer
}

/// Asks for what does not end, with more headers, and reads the answer's head. Fails as [`request`] does.
#[track_caller]
pub fn open(socket: &Path, path: &str, headers: &str) -> (Answer, BufReader<UnixStream>) {
    let mut stream = connect(socket);
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut answer = read_head(&mut stream);
    if answer.header("content-length").is_some() {
        read_body(&mut stream, &mut answer);
    } else if answer.header("transfer-encoding").is_some() {
        // All of it is text.
        answer.body = "".into();
    }
    description::check("GET", path, &answer);
    (answer, stream)
}

/// A connection on which nothing takes longer than it takes a hanging monitor to be found out.
pub fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads one answer of a connection.
pub fn read_answer(stream: &mut impl BufRead) -> Answer {
    let mut answer = read_head(stream);
    if answer.header("content-length").is_some() {
        read_body(stream, &mut answer);
    } else {
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    answer
}

fn read_head(stream: &mut impl BufRead) -> Answer {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("HTTP/1.1"), "{line:?}");
    let status = words.next().unwrap().parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap();
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Answer {
        status,
        headers,
        body: Value::Null,
    }
}

fn read_body(stream: &mut impl BufRead, answer: &mut Answer) {
    let length = answer.header("content-length").unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    answer.body = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(_) => Value::String(String::from_utf8(body).unwrap()),
    };
}

/// A request for a snapshot in `directory`.
pub fn snapshot_to(directory: &Path) -> Value {
    json!({"snapshot_path": directory.join("state"), "mem_file_path": directory.join("memory")})
}

/// A request to load the snapshot that is there; the guest stays paused.
pub fn snapshot_from(directory: &Path) -> Value {
    json!({
        "snapshot_path": directory.join("state"),
        "mem_backend": {"backend_type": "File", "backend_path": directory.join("memory")},
    })
}

/// A monitor with an API.
pub struct Service {
    live: Live,
    socket: PathBuf,
}

impl Service {
    /// Starts `mote vmm` with these options in `directory`, where its socket is too.
    pub fn start<S: AsRef<OsStr>>(directory: &Path, options: &[S]) -> Self {
        let mut command = Command::new(monitor::path());
        command.arg("vmm");
        Self::start_as(command, directory, options)
    }

    /// Starts it under another name, by a link in `directory`.
    pub fn start_named<S: AsRef<OsStr>>(directory: &Path, name: &str, options: &[S]) -> Self {
        let link = directory.join(name);
        std::os::unix::fs::symlink(monitor::path(), &link).unwrap();
        Self::start_as(Command::new(link), directory, options)
    }

    fn start_as<S: AsRef<OsStr>>(mut command: Command, directory: &Path, options: &[S]) -> Self {
        let socket = directory.join("api.sock");
        command.arg("--api-sock").arg(&socket).args(options);
        command.env("XDG_RUNTIME_DIR", directory);
        // So is what a client names without a directory.
        command.current_dir(directory);
        let live = Live::start(command);
        let deadline = Instant::now() + DEADLINE;
        while UnixStream::connect(&socket).is_err() {
            if Instant::now() > deadline {
                panic!("no socket comes: {}", live.kill());
            }
            thread::sleep(INTERVAL);
        }
        Self { live, socket }
    }

    /// Where its socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.live.pid()
    }

    /// The process with the guest's console.
    pub fn live(&mut self) -> &mut Live {
        &mut self.live
    }

    /// Sends a request. Fails if the description of the API does not have the answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string);
        request(&self.socket, method, path, body.as_deref())
    }

    /// Asks for something; fails if it is refused.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.request("GET", path, None);
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.body
    }

    /// Has something done; fails if it is refused.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "callers write it with json!")]
    pub fn put(&self, path: &str, body: Value) {
        let answer = self.request("PUT", path, Some(&body));
        assert_eq!(answer.status, 204, "PUT {path} {body}: {answer:?}");
    }

    /// Has something changed; fails if it is refused.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "callers write it with json!")]
    pub fn patch(&self, path: &str, body: Value) {
        let answer = self.request("PATCH", path, Some(&body));
        assert_eq!(answer.status, 204, "PATCH {path} {body}: {answer:?}");
    }

    /// Has something removed; fails if it is refused.
    #[track_caller]
    pub fn delete(&self, path: &str) {
        let answer = self.request("DELETE", path, None);
        assert_eq!(answer.status, 204, "DELETE {path}: {answer:?}");
    }

    /// Has something done that takes no more than naming it.
    #[track_caller]
    pub fn act(&self, action: &str) {
        self.put("/actions", serde_json::json!({ "action_type": action }));
    }

    /// Asks for what is refused with 400 and a message that has all of these in it.
    #[track_caller]
    pub fn refused(&self, method: &str, path: &str, body: Option<&Value>, parts: &[&str]) {
        let answer = self.request(method, path, body);
        let what = format!("{method} {path} {body:?}: {answer:?}");
        assert_eq!(answer.status, 400, "{what}");
        let message = answer.body["fault_message"].as_str();
        let message = message.unwrap_or_else(|| panic!("{what}"));
        for part in parts {
            assert!(message.contains(part), "no {part:?} in {what}");
        }
    }

    /// The state that it says it is in.
    #[track_caller]
    pub fn state(&self) -> String {
        self.get("/")["state"].as_str().unwrap().to_owned()
    }

    /// Ends it by SIGTERM, and checks that nothing is left.
    #[track_caller]
    pub fn terminate(self) -> Ended {
        rustix::process::kill_process(self.live.pid(), Signal::TERM).unwrap();
        self.wait()
    }

    /// Has it hit by a signal that it cannot tidy up after.
    #[track_caller]
    pub fn hit(self, signal: Signal) -> Ended {
        rustix::process::kill_process(self.live.pid(), signal).unwrap();
        self.live.wait()
    }

    /// Waits for its end, and checks that its socket is gone.
    #[track_caller]
    pub fn wait(self) -> Ended {
        let ended = self.live.wait();
        assert!(!self.socket.exists(), "{ended:?}");
        ended
    }
}
