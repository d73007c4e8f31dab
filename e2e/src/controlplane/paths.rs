//! The files of a cluster's directory.

pub(super) const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
pub(super) const AUDIT_LOG: &str = "audit.log";
pub(super) const AUDIT_POLICY: &str = "audit-policy.yaml";
pub(super) const CA_CERT: &str = "ca.crt";
pub(super) const CA_KEY: &str = "ca.key";
pub(super) const CONTROLLER_KUBECONFIG: &str = "controller-manager.kubeconfig";
pub(super) const ETCD_DATA: &str = "etcd";
pub(super) const KUBELET_CLIENT_CERT: &str = "kubelet-client.crt";
pub(super) const KUBELET_CLIENT_KEY: &str = "kubelet-client.key";
pub(super) const PROXY_CLIENT_CERT: &str = "proxy-client.crt";
pub(super) const PROXY_CLIENT_KEY: &str = "proxy-client.key";
pub(super) const SCHEDULER_KUBECONFIG: &str = "scheduler.kubeconfig";
pub(super) const SERVER_CERT: &str = "apiserver.crt";
pub(super) const SERVER_KEY: &str = "apiserver.key";
pub(super) const TOKEN_KEY: &str = "service-account.key";
pub(super) const TOKEN_PUBLIC_KEY: &str = "service-account.pub";
