//! The cluster's own certificate authority: the API server's certificate, and its clients'.
//!
//! A client's identity is in its certificate: the common name is the user, each organization a group (Kubernetes,
//! "X.509 client certificates").

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("cannot make the certificate of {subject}")]
    Certificate { subject: String, source: rcgen::Error },
    #[error("a client certificate carries at most two groups, not {0}")]
    TooManyGroups(usize),
}

/// A certificate and its private key, both PEM, the key as PKCS #8.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// The certificate authority of one cluster.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one, self-signed.
    pub fn new() -> Result<Self, Error> {
        let subject = "hybridnic test cluster";
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, new_key()?);
        issuer
            .map(|issuer| Self { issuer })
            .map_err(|source| certificate_error(subject, source))
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's key, PEM: for the controller that signs what kubelets ask for.
    pub(super) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A server's certificate, good for these names and addresses.
    pub fn server(&self, server: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Pair, Error> {
        let mut params = CertificateParams::default();
        for name in names {
            let name = (*name)
                .try_into()
                .map_err(|source| certificate_error(name, source))?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        let addresses = addresses.iter().copied().map(rcgen::SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, server)
    }

    /// A client's certificate: who it is, and in which groups, at most two.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Pair, Error> {
        // rcgen keeps one value for each type of attribute; the same type by its number counts as another.
        let organization = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        if groups.len() > organization.len() {
            return Err(Error::TooManyGroups(groups.len()));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, group) in organization.into_iter().zip(groups) {
            params.distinguished_name.push(kind, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, user)
    }

    fn sign(&self, mut params: CertificateParams, subject: &str) -> Result<Pair, Error> {
        params.distinguished_name.push(DnType::CommonName, subject);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.map_err(|source| certificate_error(subject, source))?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// A key pair that signs service-account tokens: (private, public), PEM.
pub fn signing_key() -> Result<(String, String), Error> {
    let key = new_key()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(Error::Key)
}

fn certificate_error(subject: &str, source: rcgen::Error) -> Error {
    Error::Certificate {
        subject: subject.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_group_is_refused_rather_than_dropped() {
        let authority = Authority::new().unwrap();
        assert!(matches!(
            authority.client("u", &["a", "b", "c"]),
            Err(Error::TooManyGroups(3))
        ));
    }
}
