//! Certificates for one migration. Each end makes a CA and has it sign a single certificate; the CA's key is not
//! kept. So pinning the CA pins this end of this migration.

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// An end of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum End {
    /// Where the VM comes from.
    Source,
    /// Where it goes to.
    Target,
}

/// What an end has, all in PEM.
pub struct Certificates {
    /// The CA's certificate.
    pub ca: String,
    /// The end's certificate.
    pub certificate: String,
    /// The key to that.
    pub key: String,
}

/// Makes those of one end of the migration of this uid, which is the target's name in its certificate.
///
/// They are valid for at least a day on either side of now, because the ends' clocks may differ by that much. They are checked when the
/// stream begins, and never again.
pub fn make(migration: &str, end: End, now: Timestamp) -> Result<Certificates, rcgen::Error> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let issuer = CertifiedIssuer::self_signed(authority(migration, end, today), KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = leaf(migration, end, today)?.signed_by(&key, &issuer)?;
    Ok(Certificates {
        ca: issuer.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn authority(migration: &str, end: End, today: Date) -> CertificateParams {
    let mut params = valid_around(today);
    // QEMU has the CAs of both ends in one list, and finds an issuer by its name.
    params.distinguished_name = named(&format!("{end} {migration}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(migration: &str, end: End, today: Date) -> Result<CertificateParams, rcgen::Error> {
    let mut params = valid_around(today);
    params.distinguished_name = named(migration);
    params.is_ca = IsCa::ExplicitNoCa;
    // QEMU wants both of whatever kind of key.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![match end {
        End::Source => ExtendedKeyUsagePurpose::ClientAuth,
        End::Target => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    params.subject_alt_names = vec![rcgen::SanType::DnsName(migration.try_into()?)];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// From the beginning of yesterday to the end of tomorrow.
fn valid_around(today: Date) -> CertificateParams {
    let at = |date: Date| {
        let part = |n: i8| u8::try_from(n).unwrap_or(1);
        date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    let mut params = CertificateParams::default();
    params.not_before = at(today.saturating_sub(1.day()));
    params.not_after = at(today.saturating_add(2.days()));
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    // An X.509 common name has at most 64 characters.
    names.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_short_enough_for_the_api_and_those_of_no_other_end() {
        let uid = "0b9f3f3c-7a0e-4c89-a3a5-5f1b8d0c2e4f";
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let [source, target] = [End::Source, End::Target].map(|end| make(uid, end, now).unwrap());
        assert!(source.ca.len() < 1024, "{}", source.ca.len());
        assert!(source.ca != target.ca && source.key != target.key);
        assert!(source.key.contains("PRIVATE KEY") && !source.ca.contains("PRIVATE"));
    }

    #[test]
    fn clocks_may_differ_by_a_day() {
        for second in [0, 86_399, 1_798_675_200, 1_800_000_000] {
            let today = Timestamp::from_second(second)
                .unwrap()
                .to_zoned(TimeZone::UTC)
                .date();
            let params = valid_around(today);
            assert!(params.not_before.unix_timestamp() <= second - 86_400);
            assert!(params.not_after.unix_timestamp() >= second + 86_400);
        }
    }
}
