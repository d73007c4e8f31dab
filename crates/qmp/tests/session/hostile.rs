//! A peer that says too much, or what no QEMU says.

use super::*;

#[tokio::test]
async fn an_answer_that_is_too_long_fails_its_command_and_no_other() {
    let (client, mut peer) = connect_with(Options {
        max_line: 4096,
        ..Options::default()
    })
    .await;
    let mut events = client.subscribe();
    let serve = async {
        let (long, short) = (peer.command().await, peer.command().await);
        let more = "x".repeat(10_000);
        peer.line(&format!(
            r#"{{"return": [{{"name": "{more}"}}], "id": {}}}"#,
            long["id"]
        ))
        .await;
        peer.event("STOP").await;
        let status = json!({"return": {"status": "paused", "running": false}, "id": short["id"]});
        peer.line(&status.to_string()).await;
    };
    let (long, short, ()) = tokio::join!(client.query_rx_filter("sb"), client.query_status(), serve);
    let error = long.unwrap_err();
    let QmpError::TooLong { limit: 4096, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        error.to_string(),
        "QEMU's answer to query-rx-filter is longer than the limit of 4096 bytes"
    );
    assert!(!short.unwrap().running);
    assert_eq!(events.recv().await.unwrap().name, "STOP");
}

#[tokio::test]
async fn an_over_long_line_that_answers_nobody_ends_the_session() {
    let (client, mut peer) = connect_with(Options {
        max_line: 4096,
        ..Options::default()
    })
    .await;
    let call = client.query_status();
    let serve = async {
        peer.command().await;
        peer.line(&"x".repeat(5000)).await;
    };
    let (result, ()) = tokio::join!(call, serve);
    assert!(
        matches!(
            result,
            Err(QmpError::Closed(CloseReason::LineTooLong { limit: 4096 }))
        ),
        "{result:?}"
    );
    assert_eq!(ended(&client).await, CloseReason::LineTooLong { limit: 4096 });
}

#[tokio::test]
async fn over_long_event_ends_the_session() {
    let (client, mut peer) = connect_with(Options {
        max_event: 512,
        ..Options::default()
    })
    .await;
    peer.line(&json!({"event": "E", "data": "x".repeat(600)}).to_string())
        .await;
    assert_eq!(ended(&client).await, CloseReason::EventTooLong { limit: 512 });
}

/// Like a QEMU that its guest has taken over: nobody waits for what it sends, and it sends it again and again.
#[tokio::test]
async fn a_flood_of_what_nobody_waits_for_ends_the_session() {
    let event = r#"{"event":"RESUME","timestamp":{"seconds":1,"microseconds":2}}"#;
    for line in [
        event,
        "",
        r#"{"return":{},"id":1}"#,
        r#"{"id":1,"error":{"class":"a","desc":"b"}}"#,
    ] {
        let (client, mut peer) = connect_with(Options {
            max_events: 50,
            ..Options::default()
        })
        .await;
        let mut events = client.subscribe();
        for _ in 0..50 {
            peer.line(line).await;
        }
        // This many may come, and other requests are still answered.
        let nothing = json!({});
        let ask = client.run("echo", &nothing);
        let serve = async {
            let command = peer.command().await;
            peer.answer(&command, json!({})).await;
        };
        let (answered, ()) = tokio::join!(ask, serve);
        answered.unwrap();
        // All of it within a second, no matter how busy the machine.
        peer.send(&format!("{line}\r\n").repeat(51)).await;
        assert_eq!(
            ended(&client).await,
            CloseReason::TooManyEvents { limit: 50 },
            "{line}"
        );
        let mut told = 0;
        while events.recv().await.is_ok() {
            told += 1;
        }
        assert_eq!(told > 50, line == event, "{told}");
    }
}

/// QEMU's answers are not counted: a client that asks much gets much.
#[tokio::test]
async fn answers_are_no_flood() {
    let (client, mut peer) = connect_with(Options {
        max_events: 5,
        ..Options::default()
    })
    .await;
    let nothing = json!({});
    for n in 0..50 {
        let serve = async {
            let command = peer.command().await;
            peer.answer(&command, json!(n)).await;
        };
        let (answer, ()) = tokio::join!(client.execute::<_, i32>("echo", &nothing), serve);
        assert_eq!(answer.unwrap(), n);
    }
}

#[tokio::test]
async fn garbage_ends_the_session_for_every_caller() {
    let (client, mut peer) = connect().await;
    let mut events = client.subscribe();
    let serve = async {
        peer.command().await;
        peer.command().await;
        peer.event("STOP").await;
        peer.line("\u{7f}garbage {").await;
    };
    let (a, b, ()) = tokio::join!(client.query_status(), client.query_migrate(), serve);
    assert!(a.unwrap_err().is_closed() && b.unwrap_err().is_closed());
    let CloseReason::Invalid { text, .. } = ended(&client).await else {
        panic!("another reason")
    };
    assert!(text.contains("garbage"));
    // What came before is still delivered, then the reason; and a new call fails at once.
    assert_eq!(events.recv().await.unwrap().name, "STOP");
    assert!(matches!(
        events.recv().await,
        Err(EventError::Closed(CloseReason::Invalid { .. }))
    ));
    assert!(client.query_status().await.unwrap_err().is_closed());
    assert!(matches!(
        client.subscribe().recv().await,
        Err(EventError::Closed(CloseReason::Invalid { .. }))
    ));
}

#[tokio::test]
async fn a_reply_to_nothing_ends_the_session() {
    for line in [
        r#"{"return":{},"id":4711}"#,
        r#"{"error":{"class":"GenericError","desc":"JSON parse error"}}"#,
    ] {
        let (client, mut peer) = connect().await;
        peer.line(line).await;
        assert!(
            matches!(ended(&client).await, CloseReason::Invalid { .. }),
            "{line}"
        );
    }
}
