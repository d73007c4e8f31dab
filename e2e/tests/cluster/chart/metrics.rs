//! An agent's metrics are on its node's network, to which no NetworkPolicy applies. They are for users whom the API server lets get them.

use std::sync::Arc;

use hybridnic_e2e::chart;
use hybridnic_process::http::{self, Guard, HttpOptions, Pages};
use hybridnic_process::metrics::Registry;
use hybridnic_process::{log_level, probes};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::rights::IN_FORCE;
use super::{cluster, kubectl};

/// What a server answers to a client with this token: a status, and its text.
async fn ask_for(path: &str, port: u16, token: Option<&str>) -> (u16, String) {
    let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = token.map(|token| token.to_owned().into());
    let client = kube::Client::try_from(config).unwrap();
    let request = ::http::Request::get(path).body(Vec::new()).unwrap();
    match client.request_text(request).await {
        Ok(text) => (200, text),
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        Err(error) => panic!("{error:?}"),
    }
}

async fn ask(port: u16, token: Option<&str>) -> (u16, String) {
    ask_for("/metrics", port, token).await
}

/// An agent's metrics, on a port.
async fn serve(client: kube::Client, audience: Option<&str>) -> (u16, JoinHandle<std::io::Result<()>>) {
    let key = rcgen::generate_simple_self_signed(vec!["n1".to_owned()]).unwrap();
    let (certificate, key) = (key.cert.der().to_vec(), key.signing_key.serialize_der());
    let guard = Guard::new(client, certificate, key, audience.map(ToOwned::to_owned)).unwrap();
    let (_filter, logs) = log_level::reloadable::<tracing_subscriber::Registry>("info").unwrap();
    let (probes, _heart) = probes::probes();
    let mut registry = Registry::new("test", "1");
    registry.counter("hybridnic_things", [], "Things");
    let pages = Pages {
        probes,
        metrics: Arc::new(registry),
        logs,
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let options = HttpOptions {
        http_address: None,
        metrics_address: Some(([127, 0, 0, 1], port).into()),
    };
    let server = tokio::spawn(async move { http::serve(&options, pages, Some(guard)).await });
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(
            begun.elapsed() < IN_FORCE && !server.is_finished(),
            "nobody listens"
        );
        sleep(std::time::Duration::from_millis(20)).await;
    }
    (port, server)
}

#[tokio::test]
async fn an_agents_metrics_are_for_those_who_may_get_them() {
    let (cluster, _dir) = cluster().await;
    chart::install_without_pods(&cluster).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client_admin(), chart::NAMESPACE);
    for name in ["reader", "stranger"] {
        let account = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
    }
    let token = async |name: &str| {
        let login = cluster
            .login_service_account(chart::NAMESPACE, name, None)
            .await
            .unwrap();
        login.bearer().unwrap().to_owned()
    };
    let (reader, stranger) = (token("reader").await, token("stranger").await);

    // The agent's own rights are those of the chart.
    let agent = cluster
        .login_service_account(chart::NAMESPACE, chart::AGENT, Some(("Node", "n1")))
        .await
        .unwrap();
    let (port, server) = serve(agent.client().await.unwrap(), None).await;

    assert_eq!(ask(port, None).await.0, 401);
    assert_eq!(ask(port, Some("invented")).await.0, 401);
    assert_eq!(ask(port, Some(&stranger)).await.0, 403);
    assert_eq!(ask(port, Some(&reader)).await.0, 403, "not yet");
    let bind = [
        "create",
        "clusterrolebinding",
        "reads-metrics",
        "--clusterrole=hybridnic-metrics",
        "--serviceaccount=hybridnic-system:reader",
    ];
    kubectl(&cluster, &bind).await;
    let begun = Instant::now();
    let text = loop {
        let (status, text) = ask(port, Some(&reader)).await;
        if status == 200 {
            break text;
        }
        // By then the role is in force.
        assert!(status == 403 && begun.elapsed() < IN_FORCE, "{status}: {text}");
        // More often the API server is not asked for one peer's unknown tokens.
        sleep(std::time::Duration::from_millis(2100)).await;
    };
    assert!(text.contains("hybridnic_things_total 0\n"), "{text}");
    assert_eq!(ask(port, Some(&stranger)).await.0, 403);
    server.abort();

    // With an audience a stolen token is valid for nothing else.
    let token = async |audience: &str| {
        let audience = format!("--audience={audience}");
        let args = ["create", "token", "reader", "-n", chart::NAMESPACE, &audience];
        kubectl(&cluster, &args).await.trim().to_owned()
    };
    let (ours, others) = (token("hybridnic-metrics").await, token("others").await);
    let (port, server) = serve(agent.client().await.unwrap(), Some("hybridnic-metrics")).await;
    let (status, text) = ask(port, Some(&ours)).await;
    assert_eq!(status, 200, "{text}");
    for token in [&reader, &others] {
        let (status, why) = ask(port, Some(token)).await;
        assert_eq!(status, 401, "{why}");
    }
    let api = async |token: &str| ask_for("/version", cluster.port(), Some(token)).await.0;
    assert_eq!((api(&reader).await, api(&ours).await), (200, 401));
    server.abort();
}
