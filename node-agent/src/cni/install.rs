//! The plugin's program on the node, where the container runtime starts it.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use hybridnic_cni::wire::PLUGIN;

const MODE: u32 = 0o755;

/// Puts the plugin's program into a directory of such programs, whole or not at all; says whether it was another one, or none.
///
/// It stays when hybridnic is uninstalled: without it the runtime could not end the pods that have our interfaces.
pub fn install(program: &Path, directory: &Path) -> io::Result<bool> {
    let (place, content) = (directory.join(PLUGIN), fs::read(program)?);
    if is_there(&place, &content) {
        return Ok(false);
    }
    // Always the same name: if an agent is killed here, the next one takes over what it leaves behind.
    let new = directory.join(format!(".{PLUGIN}.new"));
    let mut file = File::create(&new)?;
    file.write_all(&content)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, &place)?;
    Ok(true)
}

fn is_there(place: &Path, content: &[u8]) -> bool {
    let mode = fs::symlink_metadata(place).map(|meta| (meta.is_file(), meta.permissions().mode() & 0o7777));
    matches!(mode, Ok((true, MODE))) && fs::read(place).is_ok_and(|there| there == content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_program_is_replaced_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let (program, bin) = (dir.path().join("hybridnic-cni"), dir.path().join("bin"));
        fs::create_dir(&bin).unwrap();
        let place = bin.join("hybridnic");
        fs::write(&program, "one").unwrap();
        assert!(install(&program, &bin).unwrap());
        let first = fs::metadata(&place).unwrap();
        assert_eq!(first.mode() & 0o7777, 0o755);
        assert!(!install(&program, &bin).unwrap());
        assert_eq!(fs::metadata(&place).unwrap().ino(), first.ino());

        // A process that runs the old one keeps it. What was left halfway does not matter.
        let running = File::open(&place).unwrap();
        fs::write(bin.join(".hybridnic.new"), "half").unwrap();
        fs::write(&program, "another").unwrap();
        assert!(install(&program, &bin).unwrap());
        assert_eq!(fs::read(&place).unwrap(), b"another");
        assert_eq!(io::read_to_string(running).unwrap(), "one");
        fs::set_permissions(&place, Permissions::from_mode(0o644)).unwrap();
        assert!(install(&program, &bin).unwrap());
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
        assert!(install(&program, &dir.path().join("none")).is_err());
    }
}
