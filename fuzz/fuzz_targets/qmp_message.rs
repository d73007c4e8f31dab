//! A line from QEMU to a message: what is kept of QEMU's words is bounded and controls no terminal; what is written is one line.
#![no_main]

use hybridnic_qmp::CloseReason;
use hybridnic_qmp::fuzzing::{DESC_MAX, Said, command, greeting, line};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const MAX_EVENT: usize = 512;

fn is_fit_to_show(text: &str, max: usize) {
    assert!(text.chars().count() <= max, "{} characters", text.chars().count());
    assert!(!text.contains(hybridnic_text::steers), "{text:?}");
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        _ => false,
    }
}

fuzz_target!(|text: &str| {
    match line(text, MAX_EVENT) {
        Ok(Said::Event(event)) => {
            assert!(text.len() <= MAX_EVENT);
            for id in ["", "vf-a-g1", "sb-a"] {
                let _ = event.is_device_deleted(id) || event.is_unplug_refused(id);
                let _ = event.is_failover_negotiated(id);
            }
            let _ = event.rx_filter_changed();
            if let Some(status) = event.migration_status() {
                is_fit_to_show(status.as_str(), 64);
            }
        }
        Ok(Said::Return(value)) => {
            let again = line(&format!("{{\"return\":{value},\"id\":7}}"), MAX_EVENT);
            assert!(matches!(again, Ok(Said::Return(same)) if same == value));
        }
        Ok(Said::Refusal(class, desc)) => {
            is_fit_to_show(&class, DESC_MAX);
            is_fit_to_show(&desc, DESC_MAX);
        }
        Err(reason) => {
            if let CloseReason::Invalid { why, text } = &reason {
                is_fit_to_show(why, DESC_MAX);
                is_fit_to_show(text, DESC_MAX);
            }
            is_fit_to_show(&reason.to_string(), 3 * DESC_MAX);
        }
    }
    match greeting(text) {
        Ok(version) => drop(version.to_string()),
        Err(quoted) => is_fit_to_show(&quoted, DESC_MAX),
    }
    if let Ok(arguments) = serde_json::from_str::<Value>(text) {
        let written = command("any", &arguments, 7).expect("a value is written");
        let (end, rest) = written.split_last().expect("it has an end");
        assert!(*end == b'\n' && !rest.contains(&b'\n'), "a command is one line");
        let read: Value = serde_json::from_slice(rest).expect("what is written can be read");
        assert_eq!((&read["execute"], &read["id"]), (&"any".into(), &7.into()));
        // A fraction may lose its last digit, and there is none in what we write.
        assert!(
            has_fraction(&arguments) || read["arguments"] == arguments,
            "{read}"
        );
    }
});
