//! Reads a `/proc/PID/stat`. Pure and without dependencies, because it is fuzzed as it is.

/// State and start of a line of `/proc/PID/stat` (`proc_pid_stat(5)`). The name in parentheses may hold anything, so what counts begins
/// behind the last one.
pub fn parse(line: &str) -> Option<(&str, u64)> {
    let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // Fields 4 to 21 are between the state and the start.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_behind_a_name_that_may_hold_anything() {
        let line = "7 (a) b ( c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 5 6\n";
        assert_eq!(parse(line), Some(("S", 4711)));
        assert_eq!(parse("7 (a"), None);
    }
}
