//! As much of a kubelet as the tests need: calls of the Container Runtime Interface
//! (kubernetes/cri-api, `runtime.v1`) over its Unix socket. curl speaks HTTP/2; gRPC puts five
//! bytes in front of a message, and of protobuf there are two kinds of fields here.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A protobuf message under construction, or a received one.
#[derive(Clone, Default, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A message with one text in field 1, which is how CRI names sandboxes.
    pub fn id(id: &str) -> Self {
        Self::default().text(1, id)
    }

    /// Adds a number, a truth value or an enumerator.
    pub fn number(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.varint(value);
        self
    }

    pub fn text(self, field: u8, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub fn message(self, field: u8, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    fn bytes(mut self, field: u8, value: &[u8]) -> Self {
        self.0.push((field << 3) | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn varint(&mut self, value: u64) {
        let low = u8::try_from(value & 0x7f).unwrap();
        if value > 0x7f {
            self.0.push(low | 0x80);
            self.varint(value >> 7);
        } else {
            self.0.push(low);
        }
    }

    /// Every field with its number, in their order: bytes of length-delimited ones, and
    /// numbers by themselves.
    fn fields(&self) -> Vec<(u64, u64, Self)> {
        let mut rest = self.0.as_slice();
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let key = take_varint(&mut rest);
            let value = take_varint(&mut rest);
            let mut bytes = Self::default();
            match key & 7 {
                0 => {}
                2 => {
                    let (this, others) = rest.split_at(usize::try_from(value).unwrap());
                    bytes.0.extend(this);
                    rest = others;
                }
                other => panic!("a field of type {other} in {self:?}"),
            }
            fields.push((key >> 3, value, bytes));
        }
        fields
    }

    /// The messages in a repeated field.
    pub fn all(&self, field: u64) -> Vec<Self> {
        let fields = self.fields().into_iter();
        fields.filter(|f| f.0 == field).map(|f| f.2).collect()
    }

    /// The message in a field; an empty one if there is none.
    pub fn get(&self, field: u64) -> Self {
        self.all(field).into_iter().next_back().unwrap_or_default()
    }

    /// The text in a field; an empty one if there is none.
    pub fn string(&self, field: u64) -> String {
        String::from_utf8(self.get(field).0).unwrap()
    }

    /// The number in a field; 0 if there is none.
    pub fn value(&self, field: u64) -> u64 {
        let fields = self.fields().into_iter();
        fields
            .filter(|f| f.0 == field)
            .map(|f| f.1)
            .next_back()
            .unwrap_or_default()
    }
}

/// Takes a number from the front of a message.
fn take_varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, others) = rest.split_first().unwrap();
        *rest = others;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// Calls a method of the runtime's service; the error is what the runtime says.
pub fn call(
    socket: &str,
    scratch: &Path,
    method: &str,
    request: &Message,
) -> Result<Message, String> {
    let headers = scratch.join("headers");
    let mut curl = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--http2-prior-knowledge",
            "--max-time",
            "30",
        ])
        .args([
            "--unix-socket",
            socket,
            "--data-binary",
            "@-",
            "--dump-header",
        ])
        .arg(&headers)
        .args([
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ])
        .arg(format!(
            "http://localhost/runtime.v1.RuntimeService/{method}"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut body = vec![0];
    body.extend(u32::try_from(request.0.len()).unwrap().to_be_bytes());
    body.extend(&request.0);
    curl.stdin.take().unwrap().write_all(&body).unwrap();
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "{method}: curl failed");
    let headers = fs::read_to_string(headers).unwrap();
    if headers.lines().any(|line| line.trim() == "grpc-status: 0") {
        return Ok(Message(output.stdout.get(5..).unwrap_or_default().to_vec()));
    }
    Err(headers)
}
