//! One QMP command at a time, over any stream: enough to look and to pause. The product has its own client.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// QEMU did not do it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("talk to QEMU")]
    Talk(#[source] io::Error),
    #[error("QEMU did not answer {command} in {deadline:?}")]
    Deadline { command: String, deadline: Duration },
    #[error("QEMU refused {command}: {why}")]
    Refused { command: String, why: String },
}

/// Greets, sends the command and returns its result; events on the way are dropped.
pub(crate) async fn call(
    stream: impl AsyncBufRead + AsyncWrite + Unpin,
    command: &str,
    arguments: Value,
    deadline: Duration,
) -> Result<Value, Error> {
    timeout(deadline, converse(stream, command, arguments))
        .await
        .map_err(|_| Error::Deadline {
            command: command.into(),
            deadline,
        })?
}

async fn converse(
    mut stream: impl AsyncBufRead + AsyncWrite + Unpin,
    command: &str,
    arguments: Value,
) -> Result<Value, Error> {
    receive(&mut stream, "QMP", command).await?;
    for (execute, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
        let line = format!("{}\n", json!({"execute": execute, "arguments": arguments}));
        stream.write_all(line.as_bytes()).await.map_err(Error::Talk)?;
        let value = receive(&mut stream, "return", command).await?;
        if execute == command {
            return Ok(value);
        }
    }
    Ok(Value::Null)
}

async fn receive(stream: &mut (impl AsyncBufRead + Unpin), key: &str, command: &str) -> Result<Value, Error> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.map_err(Error::Talk)? == 0 {
            return Err(Error::Talk(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut message: Value = serde_json::from_str(&line).map_err(|e| Error::Talk(e.into()))?;
        if let Some(value) = message.get_mut(key) {
            return Ok(value.take());
        }
        if let Some(error) = message.get("error") {
            return Err(Error::Refused {
                command: command.into(),
                why: error.to_string(),
            });
        }
    }
}
