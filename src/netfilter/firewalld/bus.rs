//! As much of D-Bus as a few method calls take: the D-Bus Specification, "Authentication
//! Protocol" (SASL EXTERNAL) and "Message Protocol". Arguments are strings, and so is what
//! is answered, or a truth value.

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long to wait for an answer. firewalld writes a whole ruleset in the meantime.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of the longest answer that is read: what we ask for is answered in a few.
const LONGEST: usize = 1 << 16;

/// `METHOD_RETURN` and `ERROR`.
const RETURN: u8 = 2;
const ERROR: u8 = 3;

/// Whether a method does what is asked.
pub type Answer = std::result::Result<Value, Refusal>;

/// What a method answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing, or what nobody here asks for.
    Other,
    Text(String),
    Truth(bool),
}

/// Why a method does not do what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The name of the error, like `org.freedesktop.DBus.Error.ServiceUnknown`.
    pub name: String,
    /// For humans.
    pub text: String,
}

/// An object, and the interface through which it is called.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    pub service: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
}

/// The bus itself.
const BUS: Object = Object {
    service: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A connection to the system's bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    /// How long to wait for an answer.
    patience: Duration,
}

impl Bus {
    /// Connects; `None` where there is no bus. Each answer is waited for as long as `patience`.
    ///
    /// # Errors
    /// When there is one that does not let us in.
    pub fn open(patience: Duration) -> Result<Option<Self>> {
        let Some(stream) = connect(&address())? else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut bus = Self {
            stream,
            serial: 0,
            patience,
        };
        bus.authenticate()
            .context("log in to the D-Bus system bus")?;
        bus.call(BUS, "Hello", &[])?
            .map_err(|refusal| anyhow::anyhow!("{}", refusal.text))
            .context("log in to the D-Bus system bus")?;
        Ok(Some(bus))
    }

    /// Whether somebody serves under the name `service`.
    ///
    /// # Errors
    /// When the bus does not tell.
    pub fn is_served(&mut self, service: &str) -> Result<bool> {
        let answer = self.call(BUS, "NameHasOwner", &[service])?;
        Ok(answer == Ok(Value::Truth(true)))
    }

    /// Calls a method. Nobody is started for it.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn call(&mut self, object: Object, method: &str, args: &[&str]) -> Result<Answer> {
        self.serial += 1;
        let message = encode(self.serial, object, method, args);
        let context = || format!("call D-Bus method {}.{method}", object.interface);
        self.stream.write_all(&message).with_context(context)?;
        loop {
            let message = self.receive().with_context(context)?;
            if message.answers == Some(self.serial) {
                return Ok(message.answer());
            }
            // A signal: not for us.
        }
    }

    /// Says who we are, which the socket proves.
    fn authenticate(&mut self) -> Result<()> {
        let user = nix::unistd::geteuid().to_string();
        // Decimal digits, each as the hexadecimal of its ASCII code.
        let user: String = user.chars().flat_map(|digit| ['3', digit]).collect();
        let hello = format!("\0AUTH EXTERNAL {user}\r\n");
        self.stream.write_all(hello.as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            ensure!(line.len() < 1024, "the answer does not end");
            line.extend(self.read(1)?);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        ensure!(line.starts_with("OK "), "refused: {}", line.trim_end());
        self.stream.write_all(b"BEGIN\r\n")?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Message> {
        let start = self.read(16)?;
        let mut reader = Reader::new(&start);
        let (kind, body, fields) = reader.start().context("read a D-Bus message")?;
        let padded = fields.next_multiple_of(8);
        ensure!(
            padded <= LONGEST && body <= LONGEST,
            "a D-Bus message of more than {LONGEST} bytes"
        );
        let header = self.read(padded)?;
        let body = self.read(body)?;
        let is_little = reader.is_little;
        Message::read(
            kind,
            is_little,
            header.get(..fields).unwrap_or_default(),
            &body,
        )
        .context("read a D-Bus message")
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self.stream.read_exact(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("no answer in {} s", self.patience.as_secs())
            }
            done => done?,
        }
        Ok(bytes)
    }
}

/// Where the bus is, in the words of the specification.
#[expect(
    clippy::disallowed_methods,
    reason = "the D-Bus specification names this variable"
)]
fn address() -> String {
    let told = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok();
    told.filter(|address| !address.is_empty())
        .unwrap_or_else(|| "unix:path=/run/dbus/system_bus_socket".into())
}

/// Connects to the first of the addresses that somebody listens at.
fn connect(addresses: &str) -> Result<Option<UnixStream>> {
    for address in addresses.split(';') {
        let connected = match socket_address(address) {
            Some(address) => UnixStream::connect_addr(&address?),
            None => continue,
        };
        match connected {
            Ok(stream) => return Ok(Some(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("connect to D-Bus at {address}"));
            }
        }
    }
    Ok(None)
}

/// The socket of an address; `None` for what is no Unix socket.
fn socket_address(address: &str) -> Option<std::io::Result<SocketAddr>> {
    let options = address.strip_prefix("unix:")?;
    let value = |key: &str| {
        let mut options = options
            .split(',')
            .filter_map(|option| option.split_once('='));
        options
            .find(|(name, _)| *name == key)
            .map(|(_, value)| unescaped(value))
    };
    match (value("path"), value("abstract")) {
        (Some(path), _) => Some(SocketAddr::from_pathname(path)),
        (None, Some(name)) => Some(SocketAddr::from_abstract_name(name)),
        (None, None) => None,
    }
}

/// `%2d` and the like stand for bytes.
fn unescaped(value: &str) -> String {
    let mut parts = value.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.split_at_checked(2) {
            Some((digits, rest)) if let Ok(byte) = u8::from_str_radix(digits, 16) => {
                bytes.push(byte);
                bytes.extend(rest.as_bytes());
            }
            _ => bytes.extend([b"%", part.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The message that calls a method, little-endian.
fn encode(serial: u32, object: Object, method: &str, args: &[&str]) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    const NO_AUTO_START: u8 = 2;
    const VERSION: u8 = 1;
    let mut body = Vec::new();
    for arg in args {
        text(&mut body, arg);
    }
    let mut fields = Vec::new();
    for (code, kind, value) in [
        (1, b'o', object.path),
        (2, b's', object.interface),
        (3, b's', method),
        (6, b's', object.service),
    ] {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        text(&mut fields, value);
    }
    if !args.is_empty() {
        pad(&mut fields, 8);
        let signature = "s".repeat(args.len());
        fields.extend([8, 1, b'g', 0, u8::try_from(args.len()).unwrap_or_default()]);
        fields.extend(signature.bytes().chain([0]));
    }
    let mut message = vec![b'l', METHOD_CALL, NO_AUTO_START, VERSION];
    for number in [length(&body), serial, length(&fields)] {
        message.extend(number.to_le_bytes());
    }
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn text(bytes: &mut Vec<u8>, value: &str) {
    pad(bytes, 4);
    bytes.extend(length(value.as_bytes()).to_le_bytes());
    bytes.extend(value.bytes().chain([0]));
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

/// Our messages have some hundred bytes.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or_default()
}

/// A message that came.
#[derive(Debug, Default)]
struct Message {
    kind: u8,
    /// The serial of the message that it answers.
    answers: Option<u32>,
    error: String,
    value: Option<Value>,
}

impl Message {
    /// `None` where it breaks off.
    fn read(kind: u8, is_little: bool, fields: &[u8], body: &[u8]) -> Option<Self> {
        const ERROR_NAME: u8 = 4;
        const REPLY_SERIAL: u8 = 5;
        const SIGNATURE: u8 = 8;
        let mut message = Self {
            kind,
            ..Self::default()
        };
        let mut signature = String::new();
        // The array begins at byte 16 of the message: where values begin is the same here.
        let mut reader = Reader {
            is_little,
            ..Reader::new(fields)
        };
        while !reader.is_done() {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?.as_str()) {
                (ERROR_NAME, "s") => message.error = reader.text()?,
                (REPLY_SERIAL, "u") => message.answers = Some(reader.number()?),
                (SIGNATURE, "g") => signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.number()?),
                (_, "g") => drop(reader.signature()?),
                // No field of the specification.
                _ => return None,
            }
        }
        let mut reader = Reader {
            is_little,
            ..Reader::new(body)
        };
        message.value = match signature.chars().next() {
            Some('s') => Some(Value::Text(reader.text()?)),
            Some('b') => Some(Value::Truth(reader.number()? != 0)),
            _ => None,
        };
        Some(message)
    }

    fn answer(self) -> Answer {
        let value = self.value.unwrap_or(Value::Other);
        if self.kind == RETURN {
            return Ok(value);
        }
        Err(Refusal {
            name: self.error,
            text: match value {
                Value::Text(text) if self.kind == ERROR => text,
                _ => String::new(),
            },
        })
    }
}

/// Reads values one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_little: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            is_little: true,
        }
    }

    /// The first bytes of a message: its kind, and the lengths of its body and fields.
    fn start(&mut self) -> Option<(u8, usize, usize)> {
        self.is_little = match self.byte()? {
            b'l' => true,
            b'B' => false,
            _ => return None,
        };
        let kind = self.byte()?;
        self.align(4);
        let body = self.number()?;
        let _serial = self.number()?;
        let fields = self.number()?;
        Some((kind, body.try_into().ok()?, fields.try_into().ok()?))
    }

    fn is_done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.is_little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?.try_into().ok()?;
        self.text_of(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        self.text_of(length)
    }

    /// A text and the zero byte behind it.
    fn text_of(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `dbus-monitor --binary` shows `dbus-send`'s.
    #[test]
    fn a_call_is_as_the_specification_says() {
        let message = encode(1, BUS, "NameHasOwner", &["a.b"]);
        let mut reader = Reader::new(&message);
        let (kind, body, fields) = reader.start().unwrap();
        assert_eq!((kind, body), (1, 8));
        assert_eq!(message.len(), 16 + fields.next_multiple_of(8) + 8);
        let fields = &message[16..16 + fields];
        let read = Message::read(kind, true, fields, &message[message.len() - 8..]);
        assert_eq!(read.unwrap().value, Some(Value::Text("a.b".into())));
    }

    #[test]
    fn addresses() {
        let path = |text: &str| {
            let address = socket_address(text)?.unwrap();
            Some(address.as_pathname()?.to_str().unwrap().to_owned())
        };
        assert_eq!(path("unix:path=/run/a%2db"), Some("/run/a-b".into()));
        assert_eq!(path("unix:guid=1,path=/x"), Some("/x".into()));
        assert_eq!(path("tcp:host=a"), None);
        let hidden = socket_address("unix:abstract=x").unwrap().unwrap();
        assert_eq!(hidden.as_abstract_name(), Some(b"x".as_slice()));
        assert!(
            connect("tcp:host=a;unix:path=/nonexistent")
                .unwrap()
                .is_none()
        );
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(
            kind in 0_u8..5,
            is_little: bool,
            fields in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..20),
        ) {
            if let Some(message) = Message::read(kind, is_little, &fields, &body) {
                drop(message.answer());
            }
        }
    }
}
