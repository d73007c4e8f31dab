//! Removes what would control the terminal from everything that comes from the cluster.
//!
//! Names, messages and events have words of QEMU, of agents and of users in them. They are cleaned on arrival, in the answers of
//! the API server, so that everything that is printed later is clean. Our own colours are added after that.

use http_body_util::BodyExt as _;
use hybridnic_text::{HIDDEN, steers};
use hyper::{
    Response,
    body::{Body, Bytes},
};

/// An answer in JSON whose texts cannot control a terminal. Its chunks may end anywhere.
pub fn answer<B>(answer: Response<B>) -> Response<impl Body<Data = Bytes, Error = B::Error> + Send + 'static>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let mut filter = Filter::default();
    answer.map(|body| body.map_frame(move |frame| frame.map_data(|data| filter.pass(&data))))
}

/// Cleans JSON, octet by octet.
#[derive(Default)]
struct Filter {
    /// The beginning of an escape or of a character that is not there as a whole yet.
    begun: Vec<u8>,
}

impl Filter {
    fn pass(&mut self, data: &[u8]) -> Bytes {
        let mut clean = Vec::with_capacity(data.len());
        for octet in data {
            self.take(*octet, &mut clean);
        }
        clean.into()
    }

    fn take(&mut self, octet: u8, clean: &mut Vec<u8>) {
        self.begun.push(octet);
        let whole = match self.begun[..] {
            [b'\\'] | [b'\\', b'u'] => false,
            [b'\\', b'u', ..] => self.begun.len() == 6,
            [first, ..] if first >= 0xc0 => self.begun.len() == length(first),
            _ => true,
        };
        if whole {
            let begun = std::mem::take(&mut self.begun);
            clean.extend_from_slice(&shown(&begun).unwrap_or(begun));
        }
    }
}

/// How many octets a character has that begins with this one.
fn length(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        _ => 2,
    }
}

/// What is shown in place of a character, or of an escape for one; `None` if it stays. Ends of lines and tabs stay, because
/// we split into lines ourselves.
fn shown(whole: &[u8]) -> Option<Vec<u8>> {
    let hidden = || Some(HIDDEN.to_string().into_bytes());
    let code = match whole {
        // A backspace and a form feed.
        [b'\\', b'b' | b'f'] => return hidden(),
        // A carriage return writes over what is there.
        [b'\\', b'r'] => return Some(b" ".to_vec()),
        [b'\\', b'u', digits @ ..] => {
            let digits = std::str::from_utf8(digits).ok()?;
            // One half of a character beyond is none by itself.
            char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
        }
        [b'\\', ..] => return None,
        other => match std::str::from_utf8(other) {
            Ok(text) => text.chars().next()?,
            Err(_) => return hidden(),
        },
    };
    let stays = !steers(code) || matches!(code, '\n' | '\t') || whole == b"\r";
    if stays { None } else { hidden() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cleaned(text: &str, chunk: usize) -> String {
        let mut filter = Filter::default();
        let clean: Vec<u8> = text
            .as_bytes()
            .chunks(chunk)
            .flat_map(|chunk| filter.pass(chunk))
            .collect();
        String::from_utf8(clean).unwrap()
    }

    /// No matter how it is written in JSON, and where it is cut.
    #[test]
    fn no_text_of_an_answer_steers_the_terminal() {
        let hostile =
            "a\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{8}\u{c}\r\u{7f}\u{202e}\u{2066}\u{200f}\u{e0041}b\n\tc";
        let raw = json!({"status": {"message": hostile, "list": [hostile]}}).to_string();
        // As a writer does that escapes more than it has to.
        let escaped: String = raw
            .chars()
            .map(|c| match u32::from(c) {
                code @ 0x7f..=0xffff => format!("\\u{code:04x}"),
                _ => c.to_string(),
            })
            .collect();
        for text in [&raw, &escaped] {
            for chunk in [1, 2, 3, 5, 7, text.len()] {
                let value: Value = serde_json::from_str(&cleaned(text, chunk)).unwrap();
                let message = value["status"]["message"].as_str().unwrap();
                assert_eq!(message, "a�[2J�]0;title��31m�� ����\u{fffd}b\n\tc", "{text}");
                assert_eq!(value["status"]["list"][0], message);
            }
        }
    }

    #[test]
    fn what_steers_nothing_stays() {
        let fine =
            json!({"a": "ü ß ☃ 漢字 👩‍💻 \"quoted\" \\u001b \\n back\\slash", "n": [1, -2.5, null, true]});
        for text in [
            fine.to_string(),
            serde_json::to_string_pretty(&fine).unwrap() + "\r\n",
        ] {
            for chunk in [1, 3, text.len()] {
                assert_eq!(cleaned(&text, chunk), text);
            }
        }
        // Written in halves.
        assert_eq!(cleaned(r#""\ud83d\ude00 \u00e4""#, 1), r#""\ud83d\ude00 \u00e4""#);
    }
}
