//! How a disk is made full for one process alone.

/// Sets how large a file the server may write; writing past it fails as on a full disk.
pub fn limit_files(pid: u32, bytes: Option<u64>) {
    let soft = bytes.map_or(nix::libc::RLIM_INFINITY, |bytes| bytes);
    let limit = nix::libc::rlimit { rlim_cur: soft, rlim_max: nix::libc::RLIM_INFINITY };
    // SAFETY: the structure is valid for the length of the call, and the old limit is not asked for.
    let done = unsafe {
        nix::libc::prlimit(pid.cast_signed(), nix::libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
