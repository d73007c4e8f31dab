use super::*;
use http::{Request, Response, StatusCode};
use kube::client::Body;
use tower_test::mock::{self, Handle};

fn held_by(holder: Option<&str>, seconds: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: holder.map(ToOwned::to_owned),
        lease_duration_seconds: Some(seconds),
        // A clock that is years off must not matter.
        renew_time: Some(MicroTime(Timestamp::from_second(1).unwrap())),
        ..LeaseSpec::default()
    }
}

#[test]
fn verdicts() {
    let s = Duration::from_secs;
    let cases = [
        (None, 0, Verdict::Acquire),
        (Some(held_by(None, 15)), 0, Verdict::Acquire),
        (Some(held_by(Some(""), 15)), 0, Verdict::Acquire),
        (Some(held_by(Some("me"), 15)), 0, Verdict::Renew),
        (Some(held_by(Some("me"), 15)), 99, Verdict::Renew),
        (Some(held_by(Some("you"), 15)), 0, Verdict::Wait(s(15))),
        (Some(held_by(Some("you"), 15)), 14, Verdict::Wait(s(1))),
        (Some(held_by(Some("you"), 15)), 15, Verdict::Acquire),
        (Some(held_by(Some("you"), -1)), 0, Verdict::Acquire),
    ];
    for (spec, unchanged, verdict) in cases {
        assert_eq!(
            evaluate(spec.as_ref(), "me", s(unchanged)),
            verdict,
            "{spec:?} after {unchanged} s"
        );
    }
}

fn candidate() -> (Candidate, Handle<Request<Body>, Response<Body>>) {
    let (service, handle) = mock::pair();
    let timing = Timing::default();
    (
        Candidate::new(Client::new(service, "default"), "default", "op", "me", timing),
        handle,
    )
}

fn lease(holder: &str, version: &str) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some("op".to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(held_by(Some(holder), 15)),
    }
}

fn leadership(candidate: Candidate) -> Leadership {
    Leadership {
        candidate,
        lease: lease("me", "7"),
        renewed: Instant::now(),
    }
}

/// Answers the next request, which must have this method; gives the lease that it carried.
async fn answer(
    handle: &mut Handle<Request<Body>, Response<Body>>,
    method: &str,
    answer: Result<Lease, StatusCode>,
) -> Option<Lease> {
    let (request, reply) = handle.next_request().await.unwrap();
    assert_eq!(request.method(), method);
    let sent = request.into_body().collect_bytes().await.unwrap().to_vec();
    let (code, text) = match answer {
        Ok(lease) => (StatusCode::OK, serde_json::to_vec(&lease).unwrap()),
        Err(code) => {
            let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
                "reason": "x", "message": "no"});
            (code, serde_json::to_vec(&status).unwrap())
        }
    };
    reply.send_response(Response::builder().status(code).body(Body::from(text)).unwrap());
    serde_json::from_slice(&sent).ok()
}

#[tokio::test(start_paused = true)]
async fn a_renewal_carries_the_version_it_was_decided_on() {
    let (candidate, mut handle) = candidate();
    let mut leadership = leadership(candidate);
    let server = async {
        let sent = answer(&mut handle, "PUT", Ok(lease("me", "8"))).await.unwrap();
        assert_eq!(sent.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(sent.spec.unwrap().holder_identity.as_deref(), Some("me"));
        let sent = answer(&mut handle, "PUT", Ok(lease("me", "9"))).await.unwrap();
        assert_eq!(sent.metadata.resource_version.as_deref(), Some("8"));
    };
    tokio::select! {
        error = leadership.lost() => panic!("{error}"),
        () = server => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_renewals_are_refused_stops_before_the_lease_runs_out() {
    let (candidate, mut handle) = candidate();
    let began = Instant::now();
    let mut leadership = leadership(candidate);
    let server = async {
        loop {
            let (_, send) = handle.next_request().await.unwrap();
            send.send_error(std::io::Error::other("connection refused"));
        }
    };
    let error = tokio::select! {
        error = leadership.lost() => error,
        () = server => unreachable!(),
    };
    assert!(matches!(error, Error::Expired(_)), "{error}");
    let after = began.elapsed();
    assert!(
        after >= Duration::from_secs(10) && after < Duration::from_secs(11),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_gets_no_answer_stops_too() {
    let (candidate, mut handle) = candidate();
    let began = Instant::now();
    let mut leadership = leadership(candidate);
    let silence = async {
        let mut kept = Vec::new();
        while let Some(request) = handle.next_request().await {
            kept.push(request);
        }
    };
    let error = tokio::select! {
        error = leadership.lost() => error,
        () = silence => unreachable!(),
    };
    assert!(matches!(error, Error::Expired(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_not_a_lost_lease() {
    let (candidate, mut handle) = candidate();
    let mut leadership = leadership(candidate);
    let server = async {
        answer(&mut handle, "PUT", Err(StatusCode::CONFLICT)).await;
        answer(&mut handle, "GET", Ok(lease("me", "8"))).await;
        let sent = answer(&mut handle, "PUT", Ok(lease("me", "9"))).await.unwrap();
        assert_eq!(sent.metadata.resource_version.as_deref(), Some("8"));
    };
    tokio::select! {
        error = leadership.lost() => panic!("{error}"),
        () = server => {}
    }
}

#[tokio::test(start_paused = true)]
async fn another_holder_ends_the_leadership() {
    let (candidate, mut handle) = candidate();
    let mut leadership = leadership(candidate);
    let server = async {
        answer(&mut handle, "PUT", Err(StatusCode::CONFLICT)).await;
        answer(&mut handle, "GET", Ok(lease("you", "8"))).await;
    };
    let (error, ()) = tokio::join!(leadership.lost(), server);
    assert!(matches!(error, Error::Taken(who) if who == "you"));
}
