//! How the daemons are started. Paths are relative: each runs in the cluster's directory, and a Unix socket's path
//! must stay short (`sun_path`, 108 bytes).

use std::net::IpAddr;

use super::{Controllers, paths};

/// The services' addresses; the API server takes the first. Without nodes nothing routes them.
const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The first address of [`SERVICE_RANGE`]: the API server's own service.
pub(super) const API_SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

/// The name whose requests other API servers trust about the user's identity.
pub(super) const PROXY_CLIENT: &str = "front-proxy-client";

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A Unix socket beside the data: no port to choose, and nobody else on the machine gets in.
pub(super) const ETCD: &str = "unix://etcd.sock";
const ETCD_PEER: &str = "unix://etcd-peer.sock";

/// Only what a chart or a manifest of the project relies on. Nothing here judges nodes or collects pods: the
/// harness plays the kubelet.
const CONTROLLERS: [&str; 9] = [
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "validatingadmissionpolicy-status-controller",
];

/// etcd's flags.
pub(super) fn etcd() -> Vec<String> {
    [
        "--name=etcd".to_owned(),
        format!("--data-dir={}", paths::ETCD_DATA),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster=etcd={ETCD_PEER}"),
        // The cluster lives as long as its test: nothing to keep over a crash of the machine.
        "--unsafe-no-fsync=true".to_owned(),
        // A member alone elects itself after one such time, in milliseconds; the default is a second.
        "--heartbeat-interval=20".to_owned(),
        "--election-timeout=200".to_owned(),
        // 50,000 NICs with all their versions of some minutes are more than the default of 2 GiB.
        "--quota-backend-bytes=8589934592".to_owned(),
        "--log-level=warn".to_owned(),
    ]
    .into()
}

/// kube-apiserver's flags. Without controllers nobody makes the service account of a pod, so none is asked for.
pub(super) fn apiserver(port: u16, advertise: IpAddr, controllers: Controllers) -> Vec<String> {
    let mut flags = vec![
        format!("--etcd-servers={ETCD}"),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={port}"),
        "--permit-port-sharing=true".to_owned(),
        format!("--advertise-address={advertise}"),
        format!("--tls-cert-file={}", paths::SERVER_CERT),
        format!("--tls-private-key-file={}", paths::SERVER_KEY),
        format!("--client-ca-file={}", paths::CA_CERT),
        // Its identity when it passes a request on to another API server, as each installer sets it up.
        format!("--proxy-client-cert-file={}", paths::PROXY_CLIENT_CERT),
        format!("--proxy-client-key-file={}", paths::PROXY_CLIENT_KEY),
        format!("--requestheader-client-ca-file={}", paths::CA_CERT),
        format!("--requestheader-allowed-names={PROXY_CLIENT}"),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--anonymous-auth=false".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        format!("--service-account-issuer={ISSUER}"),
        format!("--service-account-signing-key-file={}", paths::TOKEN_KEY),
        format!("--service-account-key-file={}", paths::TOKEN_PUBLIC_KEY),
        format!("--audit-policy-file={}", paths::AUDIT_POLICY),
        format!("--audit-log-path={}", paths::AUDIT_LOG),
        "--audit-log-mode=blocking".to_owned(),
        "--profiling=false".to_owned(),
        "--allow-privileged=true".to_owned(),
    ];
    match controllers {
        Controllers::None => flags.push("--disable-admission-plugins=ServiceAccount".to_owned()),
        Controllers::Some => {}
        Controllers::All => flags.extend([
            "--enable-bootstrap-token-auth=true".to_owned(),
            format!("--kubelet-client-certificate={}", paths::KUBELET_CLIENT_CERT),
            format!("--kubelet-client-key={}", paths::KUBELET_CLIENT_KEY),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ]),
    }
    if controllers != Controllers::All {
        // It would publish the address above as that of a service, and refuses loopback there.
        flags.push("--endpoint-reconciler-type=none".to_owned());
    }
    flags
}

/// kube-scheduler's flags.
pub(super) fn scheduler() -> Vec<String> {
    vec![
        format!("--kubeconfig={}", paths::SCHEDULER_KUBECONFIG),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ]
}

/// kube-controller-manager's flags.
pub(super) fn controller_manager(controllers: Controllers) -> Vec<String> {
    let mut flags = vec![
        format!("--kubeconfig={}", paths::CONTROLLER_KUBECONFIG),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={}", paths::TOKEN_KEY),
        format!("--root-ca-file={}", paths::CA_CERT),
        "--leader-elect=false".to_owned(),
        // No port of its own: the service accounts that it makes say that it runs.
        "--secure-port=0".to_owned(),
    ];
    if controllers == Controllers::All {
        flags.extend([
            "--controllers=*,bootstrap-signer-controller,token-cleaner-controller".to_owned(),
            format!("--cluster-signing-cert-file={}", paths::CA_CERT),
            format!("--cluster-signing-key-file={}", paths::CA_KEY),
        ]);
    } else {
        flags.push(format!("--controllers={}", CONTROLLERS.join(",")));
    }
    flags
}
