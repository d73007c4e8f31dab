use http::{Request, Response};
use kube::client::Body;
use serde_json::Value;

use super::*;

/// Writes to an API server that answers them with 409, and then says which objects of that name there are.
async fn after_a_conflict(list: Option<Value>) -> Told {
    let server = tower::service_fn(move |request: Request<Body>| {
        let (status, body) = match (request.method().as_str(), &list) {
            ("GET", Some(items)) => (
                200,
                json!({
                    "apiVersion": "meta.k8s.io/v1",
                    "kind": "PartialObjectMetadataList",
                    "metadata": {},
                    "items": items,
                }),
            ),
            ("GET", None) => (503, json!({ "kind": "Status", "status": "Failure", "code": 503 })),
            _ => (
                409,
                json!({
                    "kind": "Status",
                    "status": "Failure",
                    "code": 409,
                    "reason": "Conflict",
                    "message": "the object has been modified; please apply your changes to the latest version",
                }),
            ),
        };
        let body = Body::from(body.to_string().into_bytes());
        std::future::ready(Ok::<_, tower::BoxError>(
            Response::builder().status(status).body(body).unwrap(),
        ))
    });
    let client = Client::new(server, "default");
    let id = WantId {
        namespace: "ns".into(),
        name: "nic".into(),
        uid: "its-uid".into(),
    };
    Cluster::new(client, "n1")
        .teller(&id)
        .tell(&Word::Held(true))
        .await
}

#[tokio::test]
async fn a_conflict_alone_does_not_mean_gone() {
    let named = |uid: &str| {
        json!([{
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": { "name": "nic", "uid": uid },
        }])
    };
    assert_eq!(after_a_conflict(Some(named("its-uid"))).await, Told::Failed);
    assert_eq!(
        after_a_conflict(None).await,
        Told::Failed,
        "no answer is no proof"
    );
    assert_eq!(after_a_conflict(Some(named("another"))).await, Told::Done);
    assert_eq!(after_a_conflict(Some(json!([]))).await, Told::Done);
}
