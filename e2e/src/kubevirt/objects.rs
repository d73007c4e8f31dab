//! What virt-operator would install, changed for programs that run as processes: their webhooks are at an address in place of
//! a service.

use std::net::SocketAddr;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

/// KubeVirt's own namespace.
pub const NAMESPACE: &str = "kubevirt";
/// Where its programs look for the authority of each other's certificates.
const AUTHORITY: &str = "kubevirt-ca";
/// Numbers in the status of a VM that are called signed.
const UNSIGNED: [&str; 2] = ["VSOCKCID", "checksum"];

/// Fits the list: virt-api is at `api`, with a certificate of `authority` (PEM).
pub(super) fn fit(list: &mut Value, api: SocketAddr, authority: &str) {
    let items = list.get_mut("items").and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        if item["kind"] == "ConfigMap" && item["metadata"]["name"] == AUTHORITY {
            item["data"] = json!({ "ca-bundle": authority });
        }
        // Theirs say "v1", which is no group's; virt-operator does not read it.
        if item["kind"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("ValidatingAdmissionPolicy"))
        {
            item["apiVersion"] = "admissionregistration.k8s.io/v1".into();
        }
        if item["kind"] == "CustomResourceDefinition" {
            without_narrow_formats(item);
        }
        let webhooks = item.get_mut("webhooks").and_then(Value::as_array_mut);
        for webhook in webhooks.into_iter().flatten() {
            let path = webhook["clientConfig"]["service"]["path"]
                .as_str()
                .unwrap_or_default();
            webhook["clientConfig"] = json!({
                "url": format!("https://{api}{path}"),
                "caBundle": ByteString(authority.as_bytes().to_vec()),
            });
        }
    }
}

/// KubeVirt 1.8 says `int32` of numbers that are `uint32`, and Kubernetes has come to look at that: half of the VMs would not start.
fn without_narrow_formats(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (name, field) in fields {
                if UNSIGNED.contains(&name.as_str())
                    && let Some(field) = field.as_object_mut()
                {
                    field.remove("format");
                }
                without_narrow_formats(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_narrow_formats),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_lead_to_the_process_and_the_authority_is_known() {
        let service = json!({ "service": { "namespace": "kubevirt", "name": "virt-api", "path": "/check" } });
        let mut list = json!({ "items": [
            { "kind": "ConfigMap", "metadata": { "name": "kubevirt-ca" } },
            { "kind": "ConfigMap", "metadata": { "name": "kubevirt-export-ca" } },
            { "kind": "ValidatingWebhookConfiguration", "metadata": { "name": "w" }, "webhooks": [{ "clientConfig": service }] },
            { "kind": "CustomResourceDefinition", "spec": [{ "VSOCKCID": { "type": "integer", "format": "int32" } }] },
        ]});
        fit(&mut list, ([127, 1, 2, 1], 8443).into(), "PEM");
        let items = &list["items"];
        assert_eq!(items[0]["data"]["ca-bundle"], "PEM");
        assert_eq!(items[1].get("data"), None);
        let client = &items[2]["webhooks"][0]["clientConfig"];
        assert_eq!(
            *client,
            json!({ "url": "https://127.1.2.1:8443/check", "caBundle": "UEVN" })
        );
        assert_eq!(items[3]["spec"][0]["VSOCKCID"], json!({ "type": "integer" }));
    }
}
