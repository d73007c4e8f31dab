//! QEMU's side of a session, for tests.

use std::time::Duration;

use hybridnic_qmp::{Client, Options};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// How long what is sure to come may take.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// QEMU's side of a session.
pub(crate) struct Peer(BufReader<UnixStream>);

impl Peer {
    pub(crate) async fn connect() -> (Client, Self) {
        Self::connect_with(Options::default()).await
    }

    pub(crate) async fn connect_with(options: Options) -> (Client, Self) {
        Self::connect_to((10, 0), options).await
    }

    /// A QEMU of this version.
    pub(crate) async fn connect_as(version: (u32, u32)) -> (Client, Self) {
        Self::connect_to(version, Options::default()).await
    }

    async fn connect_to((major, minor): (u32, u32), options: Options) -> (Client, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut peer = Self(BufReader::new(theirs));
        let greet = async {
            peer.say(json!({"QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": 2}, "package": ""}, "capabilities": []}}))
                .await;
            peer.answer("qmp_capabilities", json!({})).await;
        };
        let (client, ()) = tokio::join!(Client::from_stream(ours, &options), greet);
        (client.unwrap(), peer)
    }

    pub(crate) async fn say(&mut self, value: Value) {
        self.try_say(value).await.unwrap();
    }

    async fn try_say(&mut self, value: Value) -> std::io::Result<()> {
        self.0.write_all(format!("{value}\r\n").as_bytes()).await
    }

    /// An event, to a peer that may have hung up.
    pub(crate) async fn try_event(&mut self, name: &str, data: Value) -> std::io::Result<()> {
        self.try_say(json!({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}))
            .await
    }

    pub(crate) async fn event(&mut self, name: &str, data: Value) {
        self.try_event(name, data).await.unwrap();
    }

    /// The next command, which has to be this one; it waits for an answer.
    pub(crate) async fn asked(&mut self, command: &str) -> Value {
        let asked = timeout(SOON, self.any())
            .await
            .unwrap_or_else(|_| panic!("no {command}"));
        assert_eq!(asked["execute"], command);
        asked
    }

    /// The next command, whichever and whenever; it waits for an answer.
    pub(crate) async fn any(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The answer to a command.
    pub(crate) async fn reply(&mut self, asked: &Value, value: Value) {
        self.say(json!({"return": value, "id": asked["id"]})).await;
    }

    /// The next command, which has to be this one, has this answer.
    pub(crate) async fn answer(&mut self, command: &str, value: Value) {
        let asked = self.asked(command).await;
        self.reply(&asked, value).await;
    }

    /// The next command, which has to be this one, is refused.
    pub(crate) async fn refuse(&mut self, command: &str) {
        let asked = self.asked(command).await;
        self.deny(&asked).await;
    }

    /// The refusal of a command.
    pub(crate) async fn deny(&mut self, asked: &Value) {
        let error = json!({"class": "GenericError", "desc": "no"});
        self.say(json!({"error": error, "id": asked["id"]})).await;
    }

    /// A look at the VM's migration.
    pub(crate) async fn shows(&mut self, migration: &str, run: &str) {
        self.answer("query-migrate", json!({"status": migration})).await;
        let running = run == "running";
        self.answer("query-status", json!({"status": run, "running": running}))
            .await;
    }

    /// No command comes for so long.
    pub(crate) async fn is_left_alone(&mut self, time: Duration) {
        let mut line = String::new();
        assert!(
            timeout(time, self.0.read_line(&mut line)).await.is_err(),
            "{line}"
        );
    }
}
