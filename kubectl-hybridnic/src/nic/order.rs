//! What an attachment's agent is told about its VM's migration, save or restore, and how far that is. Pure.

use hybridnic_api::v1alpha1::{MigrationOrder, MigrationReport};

/// A MiB in octets.
const MIB: i64 = 1 << 20;

/// Names and values of the lines about it.
pub fn lines(order: &MigrationOrder, report: Option<&MigrationReport>) -> Vec<(&'static str, String)> {
    let mut said = report.map_or_else(|| "nothing yet".to_owned(), |report| report.state.to_string());
    if let Some(written) = report.and_then(|report| report.written) {
        said = format!("{said}, {} MiB written", written / MIB);
    }
    if let Some(left) = report.and_then(|report| report.remaining) {
        said = format!("{said}, {} MiB left", left / MIB);
    }
    let kind = match &order.file {
        Some(file) if file.saves() => "save",
        Some(_) => "restore",
        None => "migration",
    };
    let told = format!("{}: told {}, says {said}", order.migration.name, order.step);
    let file = order.file.iter().map(|file| ("file", file.path.clone()));
    [(kind, told)].into_iter().chain(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn shown(order: Value, report: Option<Value>) -> Vec<(&'static str, String)> {
        let report = report.map(|report| from_value(report).unwrap());
        lines(&from_value(order).unwrap(), report.as_ref())
    }

    #[test]
    fn a_save_says_its_file_and_how_far_qemu_is() {
        let save = json!({
            "migration": {"name": "tonight", "uid": "s"}, "nics": ["eth0"], "step": "Save",
            "file": {"path": "/saves/web.state", "then": "End"},
        });
        let active = json!({"uid": "s", "state": "Active", "written": 13 << 20, "remaining": 5 << 20});
        assert_eq!(
            shown(save, Some(active)),
            [
                (
                    "save",
                    "tonight: told Save, says Active, 13 MiB written, 5 MiB left".to_owned()
                ),
                ("file", "/saves/web.state".to_owned()),
            ]
        );
    }

    #[test]
    fn a_restore_and_a_migration_are_not_taken_for_each_other() {
        let mut order = json!({
            "migration": {"name": "again", "uid": "r"}, "nics": ["eth0"], "step": "Load",
            "file": {"path": "/saves/web.state"},
        });
        let told = shown(order.clone(), None);
        assert_eq!(
            told[0],
            ("restore", "again: told Load, says nothing yet".to_owned())
        );
        order["file"] = Value::Null;
        order["step"] = json!("Listen");
        let told = shown(order, None);
        assert_eq!(
            told,
            [("migration", "again: told Listen, says nothing yet".to_owned())]
        );
    }
}
