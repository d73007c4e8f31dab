//! The enums of the API with the meaning of each value. The CRDs have the values only.

use hybridnic_api::v1alpha1::{
    AfterSave, Aside, AttachmentState, Decision, DrainState, Goal, MacPolicy, MacvtapMode, MigrationPhase,
    MigrationState, MigrationStep, NicPhase, NoFreeVf, OnLinkLoss, Pairing, Path, PoolTags, Runtime,
    StandbyKind, SwitchOrder, VfState, VlanProtocol, WantedPath,
};
use schemars::{JsonSchema, Schema};
use serde_json::Value;

/// An enum.
pub struct Word {
    /// Its name in Rust, which is the name of its section.
    pub name: String,
    /// Its values with their meanings, in order.
    pub values: Vec<(String, String)>,
}

/// All of them.
pub fn all() -> Vec<Word> {
    vec![
        word::<NicPhase>(),
        word::<Path>(),
        word::<WantedPath>(),
        word::<StandbyKind>(),
        word::<NoFreeVf>(),
        word::<Pairing>(),
        word::<Runtime>(),
        word::<OnLinkLoss>(),
        word::<MacvtapMode>(),
        word::<VlanProtocol>(),
        word::<MacPolicy>(),
        word::<AfterSave>(),
        word::<MigrationPhase>(),
        word::<Decision>(),
        word::<VfState>(),
        word::<DrainState>(),
        word::<PoolTags>(),
        word::<Goal>(),
        word::<Aside>(),
        word::<AttachmentState>(),
        word::<SwitchOrder>(),
        word::<MigrationStep>(),
        word::<MigrationState>(),
    ]
}

fn word<T: JsonSchema>() -> Word {
    Word {
        name: T::schema_name().into_owned(),
        values: values(&schemars::schema_for!(T)),
    }
}

fn values(schema: &Schema) -> Vec<(String, String)> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|value| Some((text(value, "const")?, text(value, "description")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_meanings() {
        for word in all() {
            assert!(!word.values.is_empty(), "{} has lost its values", word.name);
        }
    }
}
