//! Objects at rest, as small as they get: JSON, compressed against a dictionary of the kind's first objects.
//!
//! Objects of a kind differ in little but names, uids and addresses. What they share, field names, messages and names of
//! nodes and networks, is in the dictionary once, so each costs a few hundred bytes.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zstd::bulk::{Compressor, Decompressor};

/// So many objects make the dictionary.
const SAMPLES: usize = if cfg!(test) { 2 } else { 24 };
/// The level of zstd from which objects as small as these hardly get smaller.
const LEVEL: i32 = 6;
/// More than the API server takes: an object that does not fit is not ours.
const LARGEST: usize = 16 << 20;

/// Packs and unpacks the objects of one kind.
#[derive(Default)]
pub struct Packer {
    samples: Vec<u8>,
    taken: usize,
    codec: Option<(Compressor<'static>, Decompressor<'static>)>,
}

impl Packer {
    /// Packs an object. The first ones stay as they are, and make the dictionary.
    pub fn pack(&mut self, object: &impl Serialize) -> io::Result<Box<[u8]>> {
        let plain = serde_json::to_vec(object)?;
        if let Some((compressor, _)) = &mut self.codec {
            return Ok(compressor.compress(&plain)?.into_boxed_slice());
        }
        self.samples.extend_from_slice(&plain);
        self.taken += 1;
        if self.taken == SAMPLES {
            let samples = std::mem::take(&mut self.samples);
            let compressor = Compressor::with_dictionary(LEVEL, &samples)?;
            self.codec = Some((compressor, Decompressor::with_dictionary(&samples)?));
        }
        Ok(plain.into_boxed_slice())
    }

    /// Unpacks what this packer has packed.
    pub fn unpack<T: DeserializeOwned>(&mut self, packed: &[u8]) -> io::Result<T> {
        match &mut self.codec {
            // A compressed one begins with zstd's magic number.
            Some((_, decompressor)) if packed.first() != Some(&b'{') => {
                let plain = decompressor.decompress(packed, LARGEST)?;
                Ok(serde_json::from_slice(&plain)?)
            }
            _ => Ok(serde_json::from_slice(packed)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{attachment, observe, say};
    use hybridnic_api::v1alpha1::{AttachmentState, NicAttachment};

    fn of(n: usize) -> NicAttachment {
        let mut attachment = attachment(&format!("eth{n}"), &format!("pod{n}"), "node-1");
        observe(&mut attachment, AttachmentState::Standby);
        say(
            &mut attachment,
            "NoFreeVf",
            "no VF of the network is free on the node",
        );
        attachment
    }

    #[test]
    fn what_is_packed_is_a_fraction_and_comes_back_as_it_was() {
        let mut packer = Packer::default();
        let all: Vec<_> = (0..9).map(|n| packer.pack(&of(n)).unwrap()).collect();
        for (n, packed) in all.iter().enumerate() {
            assert_eq!(packer.unpack::<NicAttachment>(packed).unwrap(), of(n));
        }
        assert!(all[8].len() * 4 < all[0].len(), "{}", all[8].len());
    }

    #[test]
    fn what_is_broken_is_an_error() {
        let mut packer = Packer::default();
        let all: Vec<_> = (0..4).map(|n| packer.pack(&of(n)).unwrap()).collect();
        let cut = &all[3][..all[3].len() - 1];
        packer.unpack::<NicAttachment>(cut).unwrap_err();
    }
}
