//! Who may have written a file that this server acts on. Steps are shell: whoever can write a task file, or the data
//! folder, can run commands as the server's user.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It could not be looked at.
    #[error("{path}: {error}", path = path.display())]
    Unreadable {
        /// What could not be looked at.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It belongs to someone who is neither the server's user nor root.
    #[error("{path} belongs to {owner}, {not}: chown {me} '{path}'", path = path.display(), not = not_to(me))]
    Owner {
        /// What belongs to someone else.
        path: PathBuf,
        /// To whom, by name where there is one.
        owner: String,
        /// The server's user.
        me: String,
    },
    /// Others may write to it.
    #[error("{path} can be written by {who}: chmod {mend} '{path}'", path = path.display())]
    Writable {
        /// What can be written.
        path: PathBuf,
        /// By whom.
        who: String,
        /// What chmod takes to mend it.
        mend: &'static str,
    },
}

/// Whether a file, with the folder it stands in, or a folder may be acted on: owned by the server's user or by
/// root, and writable neither by all nor by a group other than the owner's private one. A link is followed, and the
/// folder its target stands in is looked at too.
///
/// # Errors
/// [`Untrusted`], which names the path and the command that mends it.
pub fn trusted(path: &Path) -> Result<(), Untrusted> {
    let unreadable = |error| Untrusted::Unreadable { path: path.to_owned(), error };
    let real = path.canonicalize().map_err(unreadable)?;
    let metadata = real.metadata().map_err(unreadable)?;
    if !metadata.is_dir() {
        // The folder by the name that was given, and the folder of a link's target: both can swap the file.
        let given = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        for folder in [given.or(Some(Path::new("."))), real.parent()].into_iter().flatten() {
            let looked = folder.metadata();
            let metadata = looked.map_err(|error| Untrusted::Unreadable { path: folder.to_owned(), error })?;
            judge(folder, &metadata)?;
        }
    }
    judge(path, &metadata)
}

/// Whether a file or folder in a folder that is trusted is the server's user's or root's: who could write the folder
/// before may have left it there. A link is looked at, and what it leads to. What is not there is nobody's.
///
/// # Errors
/// [`Untrusted`], which names the path.
pub fn owned(path: &Path) -> Result<(), Untrusted> {
    for looked in [path.symlink_metadata(), path.metadata()] {
        match looked {
            Ok(metadata) => judge_owner(path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Untrusted::Unreadable { path: path.to_owned(), error }),
        }
    }
    Ok(())
}

fn judge_owner(path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
    let (me, owner) = (Uid::effective(), Uid::from_raw(metadata.uid()));
    if owner != me && !owner.is_root() {
        return Err(Untrusted::Owner { path: path.to_owned(), owner: user_name(owner), me: user_name(me) });
    }
    Ok(())
}

/// Looks at one file or folder.
fn judge(path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
    const WRITABLE_BY_GROUP: u32 = 0o020;
    const WRITABLE_BY_ALL: u32 = 0o002;
    judge_owner(path, metadata)?;
    let owner = Uid::from_raw(metadata.uid());
    if metadata.mode() & WRITABLE_BY_ALL != 0 {
        return Err(Untrusted::Writable { path: path.to_owned(), who: "everyone".into(), mend: "go-w" });
    }
    let group = Gid::from_raw(metadata.gid());
    if metadata.mode() & WRITABLE_BY_GROUP != 0 && !is_private_group(group, owner) {
        let name = Group::from_gid(group).ok().flatten().map_or(group.to_string(), |group| group.name);
        return Err(Untrusted::Writable { path: path.to_owned(), who: format!("the group {name}"), mend: "g-w" });
    }
    Ok(())
}

/// Whether a group is its owner's alone: it has the owner's name, or the owner's number, and no other member.
fn is_private_group(group: Gid, owner: Uid) -> bool {
    let user = User::from_uid(owner).ok().flatten();
    let listed = Group::from_gid(group).ok().flatten();
    let same_number = group.as_raw() == owner.as_raw();
    let Some(listed) = listed else {
        return same_number;
    };
    let owner_name = user.map(|user| user.name);
    let same_name = owner_name.as_deref() == Some(listed.name.as_str());
    (same_name || same_number) && listed.mem.iter().all(|member| Some(member) == owner_name.as_ref())
}

/// To whom something should have belonged.
fn not_to(me: &str) -> String {
    if me == "root" { "not to root".to_owned() } else { format!("neither to {me} nor to root") }
}

/// The name of a user, or the number where it has none.
fn user_name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_everyone_may_write_is_refused_by_name_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, "").unwrap();
        mode(&file, 0o644);
        trusted(&file).unwrap();
        mode(&file, 0o666);
        let said = trusted(&file).unwrap_err().to_string();
        assert!(said.contains("a.toml") && said.contains("chmod go-w"), "{said}");
    }

    #[test]
    fn a_file_in_a_folder_that_everyone_may_write_is_refused_even_if_sticky() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, "").unwrap();
        mode(&file, 0o600);
        mode(dir.path(), 0o1777);
        assert!(trusted(&file).is_err());
        assert!(trusted(dir.path()).is_err());
    }

    #[test]
    fn a_link_is_trusted_only_with_the_folder_of_its_target() {
        let open = tempfile::tempdir().unwrap();
        let closed = tempfile::tempdir().unwrap();
        let target = open.path().join("real.toml");
        fs::write(&target, "").unwrap();
        mode(&target, 0o600);
        let link = closed.path().join("a.toml");
        symlink(&target, &link).unwrap();
        trusted(&link).unwrap();
        mode(open.path(), 0o777);
        assert!(trusted(&link).is_err());
    }

    #[test]
    fn a_file_that_is_not_there_says_so() {
        let said = trusted(Path::new("/nowhere/a.toml")).unwrap_err().to_string();
        assert!(said.contains("/nowhere/a.toml"), "{said}");
    }

    #[test]
    fn a_group_is_private_by_number_or_name() {
        assert!(is_private_group(Gid::from_raw(0), Uid::from_raw(0)));
        assert!(is_private_group(Gid::from_raw(54_321), Uid::from_raw(54_321)));
        assert!(!is_private_group(Gid::from_raw(54_322), Uid::from_raw(54_321)));
    }
}
