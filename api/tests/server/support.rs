//! A monitor to be asked, a server for it, and clients that speak byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use api::events::{Broadcast, Reader, Start};
use api::handler::{ConsoleStream, Handler, Reply};
use api::server::{Server, ServerHandle, Settings};
use api::socket::{BoundSocket, Existing, SocketFile, bind};
use api::types::InstanceInfo;
use api::{Command, Fault, Response, State};

/// Longer than anything takes: a test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Bytes of the metrics, which are the largest answer.
pub(crate) const METRICS: usize = 1 << 20;

/// A monitor that carries commands out one after another, on a thread of its own.
pub(crate) struct Monitor {
    commands: Sender<(Command, Reply)>,
    /// What was carried out.
    pub(crate) done: Mutex<Receiver<Command>>,
    gate: Arc<(Mutex<bool>, Condvar)>,
    pub(crate) events: Broadcast,
    pub(crate) console: Broadcast,
    pub(crate) typed: Arc<Mutex<Typed>>,
}

/// What was typed on the console.
#[derive(Default)]
pub(crate) struct Typed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) room: usize,
    /// Consoles that have been attached to and are still.
    pub(crate) attached: usize,
}

impl Monitor {
    fn new() -> Self {
        let (commands, queue) = mpsc::channel::<(Command, Reply)>();
        let (sender, done) = mpsc::channel();
        let gate = Arc::new((Mutex::new(true), Condvar::new()));
        let passed = Arc::clone(&gate);
        thread::spawn(move || {
            for (command, reply) in queue {
                let (open, changed) = &*passed;
                drop(
                    changed
                        .wait_while(open.lock().expect("the gate"), |open| !*open)
                        .expect("the gate"),
                );
                let _ = sender.send(command.clone());
                match command {
                    // Never answered.
                    Command::GetMachineConfig => drop(reply),
                    command => reply.send(result(&command)),
                }
            }
        });
        Self {
            commands,
            done: Mutex::new(done),
            gate,
            events: Broadcast::of_lines(4096),
            console: Broadcast::of_bytes(4096),
            typed: Arc::default(),
        }
    }

    /// Has commands wait until it is let go on.
    pub(crate) fn hold(&self, hold: bool) {
        *self.gate.0.lock().expect("the gate") = !hold;
        self.gate.1.notify_all();
    }

    /// The next command that was carried out.
    pub(crate) fn next_done(&self) -> Command {
        let done = self.done.lock().expect("what was done");
        done.recv_timeout(LONG).expect("a command")
    }
}

fn result(command: &Command) -> Result<Response, Fault> {
    match command {
        Command::GetInstance => Ok(Response::Instance(InstanceInfo {
            id: "test".to_owned(),
            state: State::Running,
            vmm_version: "1".to_owned(),
            app_name: "Firecracker".to_owned(),
        })),
        Command::GetMmds => Ok(Response::Mmds(serde_json::json!({}))),
        Command::GetMetrics => Ok(Response::Text("m".repeat(METRICS))),
        Command::GetBalloon => Err(Fault::bad("There is no balloon.")),
        _ => Ok(Response::Empty),
    }
}

impl Handler for Monitor {
    fn submit(&self, command: Command, reply: Reply) {
        let _ = self.commands.send((command, reply));
    }

    fn events(&self) -> Reader {
        self.events.subscribe(Start::Next)
    }

    fn console(&self) -> Result<ConsoleStream, Fault> {
        let mut typed = self.typed.lock().expect("the console");
        if typed.room == 0 {
            return Err(Fault::bad("The console is closed."));
        }
        typed.attached += 1;
        drop(typed);
        let attached = Attached(Arc::clone(&self.typed));
        Ok(ConsoleStream {
            output: self.console.subscribe(Start::Oldest),
            input: Box::new(move |bytes| attached.take(bytes)),
        })
    }
}

struct Attached(Arc<Mutex<Typed>>);

impl Attached {
    fn take(&self, bytes: &[u8]) -> usize {
        let mut typed = self.0.lock().expect("the console");
        let count = bytes.len().min(typed.room);
        typed.room -= count;
        typed.bytes.extend(&bytes[..count]);
        count
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.lock().expect("the console").attached -= 1;
    }
}

/// A server on a socket of its own.
pub(crate) struct Fixture {
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) server: Option<ServerHandle>,
    pub(crate) path: PathBuf,
    _file: SocketFile,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mote-api-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let monitor = Arc::new(Monitor::new());
        let mut settings = Settings::default();
        change(&mut settings);
        let BoundSocket { listener, file } = bind(&path, Existing::Refuse).expect("a socket");
        let handler = Arc::clone(&monitor) as Arc<dyn Handler>;
        let server = Server::start(listener, handler, settings).expect("a server");
        Self {
            monitor,
            server: Some(server),
            path,
            _file: file,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.path)
    }

    /// Stops the server with all the time there is.
    pub(crate) fn stop(&mut self) {
        self.server.take().expect("the server").stop(LONG);
    }

    /// Whether a new client is answered.
    pub(crate) fn check(&self) {
        let mut client = self.client();
        client.get("/");
        assert_eq!(client.answer().status, 200);
    }
}

/// A client that sends what it is told to.
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
}

/// What came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and headers.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            (found == name).then_some(value)
        })
    }

    /// Its fault, which must be proper JSON.
    #[track_caller]
    pub(crate) fn fault(&self) -> String {
        assert_eq!(
            self.header("Content-Type"),
            Some("application/json"),
            "{self:?}"
        );
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        let fault = body.get("fault_message").and_then(|text| text.as_str());
        fault.expect("a fault").to_owned()
    }
}

impl Client {
    pub(crate) fn new(path: &Path) -> Self {
        Self::from(UnixStream::connect(path).expect("a connection"))
    }

    pub(crate) fn from(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(LONG)).expect("a limit");
        socket.set_write_timeout(Some(LONG)).expect("a limit");
        Self {
            reader: BufReader::new(socket),
        }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Sends; a server that hears no more may have said so already.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.socket().write_all(bytes.as_ref());
    }

    pub(crate) fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }

    pub(crate) fn put(&mut self, path: &str, body: &str) {
        let length = body.len();
        self.send(format!(
            "PUT {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
    }

    pub(crate) fn half_close(&mut self) {
        self.socket()
            .shutdown(Shutdown::Write)
            .expect("a half close");
    }

    /// Status line and headers.
    pub(crate) fn head(&mut self) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let count = self.reader.read_line(&mut head).expect("a head");
            assert!(count > 0, "the connection ended after {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Answer {
            status: status.expect("a status"),
            head,
            body: Vec::new(),
        }
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer
            .header("Content-Length")
            .map_or(0, |length| length.parse().expect("a length"));
        answer.body = self.read(length);
        answer
    }

    pub(crate) fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).expect("bytes");
        bytes
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        line
    }

    /// Everything up to the end of the connection, however it ends.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.reader.read_to_end(&mut bytes);
        bytes
    }

    /// Checks that the server has closed the connection.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

/// Waits for something that other threads do.
#[track_caller]
pub(crate) fn until(mut is_so: impl FnMut() -> bool) {
    let tries = LONG.as_millis() / 5;
    for _ in 0..tries {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it never became so");
}
