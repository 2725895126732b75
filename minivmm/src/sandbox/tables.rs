//! Tables of the system calls, and their arguments, that a thread of each kind may make.
//!
//! The calls were taken from traces (`strace -f`) of machines that boot, reset, migrate, stop and end, with the GNU C library
//! and with musl, and from the fallbacks of the standard library and these libraries on kernels and hosts without a traced
//! call. Any other call ends the process. A kind that starts threads also lists the calls of these threads.

use libc::{c_int, c_long};

use super::Kind;
use super::requests::*;
use seccompiler::SeccompAction;

/// A system call, allowed with any arguments or only with those that one of [`Only`] describes.
pub(super) type Call = (c_long, &'static [Only]);

/// Condition on one argument, selected by its index.
#[derive(Clone, Copy)]
pub(super) enum Only {
    /// The argument has this value.
    Is(u8, u64),
    /// The argument's bits under the mask have this value.
    Bits(u8, u64, u64),
    /// The argument is the id of this process.
    ThisProcess(u8),
}

use Only::{Bits, Is, ThisProcess};

/// System calls of a kind of thread.
pub(super) struct Table {
    pub(super) calls: &'static [&'static [Call]],
    /// Allowed requests of `ioctl`, the most frequent ones first, since they are compared in order.
    pub(super) requests: &'static [&'static [Request]],
    /// Action for every other call.
    pub(super) otherwise: SeccompAction,
}

/// Returns the table of `kind`; calls that it does not list get `otherwise`.
pub(super) fn of(kind: Kind, otherwise: SeccompAction) -> Table {
    let table = |calls, requests| Table { calls, requests, otherwise };
    match kind {
        Kind::Main => table(&[EACH, SOCKET_FILES, MAIN], &[TERMINAL_REQUESTS]),
        Kind::Vcpu => table(&[EACH], &[VCPU_REQUESTS]),
        Kind::Throttle => table(&[EACH], &[]),
        Kind::Device => table(&[EACH, DEVICE], &[DEVICE_REQUESTS]),
        Kind::Connect => table(&[EACH, CONNECT], &[]),
        Kind::Console => table(&[EACH, CONSOLE], &[CONSOLE_REQUESTS, TERMINAL_REQUESTS]),
        Kind::Control => table(&[EACH, STARTS, CONNECTIONS, CONTROL], &[]),
        Kind::Backup => table(&[EACH, DEVICE, BACKUP], &[]),
        Kind::Migration => table(
            &[EACH, STARTS, CONNECTIONS, LISTENS, MIGRATION, PAGES, SOCKET_FILES, DEVICE],
            &[MIGRATION_REQUESTS, DEVICE_REQUESTS],
        ),
        Kind::Pages => table(&[EACH, PAGES], &[]),
        Kind::Driver => table(
            &[EACH, STARTS, DRIVER, CONNECTIONS, LISTENS, MIGRATION, PAGES, SOCKET_FILES, DEVICE],
            &[VCPU_REQUESTS, DEVICE_REQUESTS, MIGRATION_REQUESTS, DRIVER_REQUESTS],
        ),
        // Modules of the system's resolver may try any call; one that is not allowed fails.
        Kind::LookUp => Table {
            calls: &[EACH, LOOK_UP],
            requests: &[&[FIONREAD]],
            otherwise: SeccompAction::Errno(libc::EPERM as u32),
        },
    }
}

const ANY: &[Only] = &[];

/// No thread makes memory executable: `prot` has no PROT_EXEC.
const NOT_EXECUTABLE: &[Only] = &[Bits(2, libc::PROT_EXEC as u64, 0)];

/// Calls of every thread.
const EACH: &[Call] = &[
    // Locks, conditions, channels, and the end of a thread that is waited for.
    (libc::SYS_futex, ANY),
    (libc::SYS_sched_yield, ANY),
    // Time, where the kernel's clock cannot be read without a call (vdso(7)).
    (libc::SYS_clock_gettime, ANY),
    (libc::SYS_gettimeofday, ANY),
    (libc::SYS_clock_nanosleep, ANY),
    (libc::SYS_nanosleep, ANY),
    // The heap, which also returns pages, and guest RAM's exclusion from core dumps, which is never undone.
    (libc::SYS_brk, ANY),
    (libc::SYS_mmap, NOT_EXECUTABLE),
    (libc::SYS_mprotect, NOT_EXECUTABLE),
    (libc::SYS_mremap, ANY),
    (libc::SYS_munmap, ANY),
    (libc::SYS_madvise, &[Is(2, libc::MADV_DONTNEED as u64)]),
    (libc::SYS_madvise, &[Is(2, libc::MADV_FREE as u64)]),
    // Keys of hash tables, tokens of ownership records.
    (libc::SYS_getrandom, ANY),
    // Events, pipes, terminals and files that are open; also messages to the user.
    (libc::SYS_read, ANY),
    (libc::SYS_write, ANY),
    (libc::SYS_writev, ANY),
    (libc::SYS_close, ANY),
    // Builds with debug assertions check that a descriptor is open before they close it.
    (libc::SYS_fcntl, &[Is(1, libc::F_GETFD as u64)]),
    // musl sets FD_CLOEXEC again on a new descriptor, for kernels that ignored the flag at first.
    (libc::SYS_fcntl, &[Is(1, libc::F_SETFD as u64), Is(2, libc::FD_CLOEXEC as u64)]),
    // Signals: return from a handler, restart of a call, and the mask around the start and the end of a thread.
    (libc::SYS_rt_sigreturn, ANY),
    (libc::SYS_restart_syscall, ANY),
    (libc::SYS_rt_sigprocmask, ANY),
    (libc::SYS_sigaltstack, ANY),
    // Process and thread ids, to signal a thread of this process: a vCPU, so that it leaves the guest, or itself, to abort.
    // musl's call does not name the process.
    (libc::SYS_getpid, ANY),
    (libc::SYS_gettid, ANY),
    (libc::SYS_tgkill, &[ThisProcess(0)]),
    #[cfg(target_env = "musl")]
    (libc::SYS_tkill, &[Is(1, libc::SIGABRT as u64)]),
    #[cfg(target_env = "musl")]
    (libc::SYS_tkill, &[Is(1, MUSL_SIGRTMIN)]),
    (libc::SYS_exit, ANY),
    (libc::SYS_exit_group, ANY),
];

/// `SIGRTMIN`, which is a function of the library (src/signal/sigrtmin.c of musl).
#[cfg(target_env = "musl")]
const MUSL_SIGRTMIN: u64 = 35;

/// Calls that start a thread, and those of the new thread until it is confined itself.
const STARTS: &[Call] = &[
    // A thread of this process, in its namespaces. `clone3` fails with ENOSYS, since no filter can see its flags, and the C
    // library falls back to `clone`.
    (libc::SYS_clone, &[Bits(0, THREAD | NAMESPACES, THREAD)]),
    (libc::SYS_set_robust_list, ANY),
    (libc::SYS_rseq, ANY),
    (libc::SYS_sched_getaffinity, ANY),
    (libc::SYS_prctl, &[Is(0, libc::PR_SET_NAME as u64)]),
    // Confinement of the thread itself.
    (libc::SYS_prctl, &[Is(0, libc::PR_SET_NO_NEW_PRIVS as u64)]),
    (libc::SYS_capset, ANY),
    (libc::SYS_seccomp, &[Is(0, libc::SECCOMP_SET_MODE_FILTER as u64)]),
];

const THREAD: u64 = libc::CLONE_THREAD as u64;
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// A vCPU calls KVM, and what device registers cause: events for their threads, interrupt lines.
const VCPU_REQUESTS: &[Request] = &[
    KVM_RUN,
    KVM_IRQ_LINE,
    // A register write negotiates the features.
    TUNSETOFFLOAD,
    // A register write may stop the card's device for a moment, and with it the kernel's part.
    VHOST_NET_SET_BACKEND,
    VHOST_GET_VRING_BASE,
    // Registers of a guest that cannot go on, for the message.
    KVM_GET_REGS,
];

const DEVICE: &[Call] = &[
    // Kicks of queues, frames of a tap, and the gate.
    (libc::SYS_epoll_wait, ANY),
    (libc::SYS_epoll_pwait, ANY),
    // A disk image.
    (libc::SYS_pread64, ANY),
    (libc::SYS_pwrite64, ANY),
    (libc::SYS_fdatasync, ANY),
    (libc::SYS_fallocate, ANY),
];

const DEVICE_REQUESTS: &[Request] = &[
    KVM_IRQ_LINE,
    // The driver changes offloads by a control command.
    TUNSETOFFLOAD,
    // The kernel's part of a card starts and stops; a migration turns its write logging on.
    VHOST_SET_FEATURES,
    VHOST_SET_VRING_NUM,
    VHOST_SET_VRING_BASE,
    VHOST_SET_VRING_ADDR,
    VHOST_SET_VRING_KICK,
    VHOST_SET_VRING_CALL,
    VHOST_SET_VRING_ERR,
    VHOST_NET_SET_BACKEND,
    VHOST_GET_VRING_BASE,
];

/// A disk is copied, and its new copy gets its name or is removed.
const BACKUP: &[Call] = &[
    // Holes of the disk.
    (libc::SYS_lseek, ANY),
    (libc::SYS_fsync, ANY),
    (libc::SYS_renameat2, &[Is(4, libc::RENAME_NOREPLACE as u64)]),
    (libc::SYS_rename, ANY),
    (libc::SYS_unlink, ANY),
    // The lock of the copy is released.
    (libc::SYS_fcntl, &[Is(1, libc::F_OFD_SETLK as u64)]),
    // A client that does not read the event of the end is disconnected.
    (libc::SYS_shutdown, ANY),
];

/// Socket of a card, which the card's thread watches and uses.
const CONNECT: &[Call] = &[
    (libc::SYS_socket, &[Is(0, libc::AF_UNIX as u64), STREAM]),
    (libc::SYS_connect, ANY),
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_SNDBUF as u64)]),
    (libc::SYS_epoll_ctl, ANY),
];

const MAIN: &[Call] = &[
    // The control socket's clients.
    (libc::SYS_shutdown, ANY),
];

const CONSOLE: &[Call] = &[
    (libc::SYS_rt_sigtimedwait, ANY),
    // Input, and room for output.
    (libc::SYS_poll, ANY),
    // End of the command of `--incoming exec:`.
    (libc::SYS_wait4, ANY),
    // A file with a size limit starts again.
    (libc::SYS_lseek, ANY),
    (libc::SYS_ftruncate, ANY),
];

const CONSOLE_REQUESTS: &[Request] = &[
    // Input raises the serial port's interrupt line.
    KVM_IRQ_LINE,
];

/// Restores the user's terminal.
const TERMINAL_REQUESTS: &[Request] = &[TCGETS, TCSETS, TCGETS2, TCSETS2];

/// Clients are accepted, served and disconnected. A migration also sends events to the control socket's clients.
const CONNECTIONS: &[Call] = &[
    (libc::SYS_accept4, ANY),
    // musl's fallback.
    (libc::SYS_accept, ANY),
    (libc::SYS_recvfrom, ANY),
    (libc::SYS_sendto, ANY),
    (libc::SYS_shutdown, ANY),
];

const CONTROL: &[Call] = &[
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_SNDTIMEO as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_RCVTIMEO as u64)]),
    (libc::SYS_fcntl, &[Is(1, libc::F_DUPFD_CLOEXEC as u64)]),
    // Commands, with passed descriptors.
    (libc::SYS_recvmsg, ANY),
];

const MIGRATION: &[Call] = &[
    // Connection of a source.
    (libc::SYS_socket, &[Is(0, libc::AF_UNIX as u64), STREAM]),
    (libc::SYS_socket, &[Is(0, libc::AF_INET as u64), STREAM]),
    (libc::SYS_socket, &[Is(0, libc::AF_INET6 as u64), STREAM]),
    (libc::SYS_socket, &[Is(0, libc::AF_VSOCK as u64), STREAM]),
    (libc::SYS_connect, ANY),
    (libc::SYS_getsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_ERROR as u64)]),
    // Descriptors of a live update, passed to the other process.
    (libc::SYS_sendmsg, ANY),
    // Socket options of a source or a destination.
    (libc::SYS_setsockopt, &[Is(1, libc::IPPROTO_TCP as u64), Is(2, libc::TCP_NODELAY as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_KEEPALIVE as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::IPPROTO_TCP as u64), Is(2, libc::TCP_KEEPIDLE as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::IPPROTO_TCP as u64), Is(2, libc::TCP_KEEPINTVL as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::IPPROTO_TCP as u64), Is(2, libc::TCP_KEEPCNT as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::IPPROTO_TCP as u64), Is(2, libc::TCP_NOTSENT_LOWAT as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_SNDBUF as u64)]),
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_RCVBUF as u64)]),
    (libc::SYS_fcntl, &[Is(1, libc::F_GETFL as u64)]),
    (libc::SYS_fcntl, &[Is(1, libc::F_SETFL as u64)]),
    (libc::SYS_poll, ANY),
    (libc::SYS_ppoll, ANY),
    // A guest's state in a file, which the driver has opened, is on the disk before the guest's disks are released.
    (libc::SYS_fsync, ANY),
    // A new state file has a second descriptor for pages, and is renamed from its `.partial` name once it is whole.
    (libc::SYS_fcntl, &[Is(1, libc::F_DUPFD_CLOEXEC as u64)]),
    (libc::SYS_renameat2, &[Is(4, libc::RENAME_NOREPLACE as u64)]),
    (libc::SYS_rename, ANY),
    // Guest memory that maps a file stays out of core dumps.
    (libc::SYS_madvise, &[Is(2, libc::MADV_DONTDUMP as u64)]),
    // Ownership: locks and records of images and of the lease, and the check that both sides have the same ones.
    (libc::SYS_fcntl, &[Is(1, libc::F_OFD_SETLK as u64)]),
    (libc::SYS_fcntl, &[Is(1, libc::F_OFD_GETLK as u64)]),
    (libc::SYS_fgetxattr, ANY),
    (libc::SYS_fsetxattr, ANY),
    (libc::SYS_lseek, ANY),
    // Content of disks: an image is emptied, its room is checked, and marks are removed.
    (libc::SYS_ftruncate, ANY),
    (libc::SYS_fstatfs, ANY),
    (libc::SYS_fremovexattr, ANY),
    // Once the guest has left or arrived, the thread lowers its own priority.
    (libc::SYS_setpriority, &[Is(0, libc::PRIO_PROCESS as u64), Is(1, 0)]),
];

/// Pages move between guest memory and a socket, or their places in a file.
const PAGES: &[Call] = &[
    (libc::SYS_sendto, ANY),
    (libc::SYS_recvfrom, ANY),
    (libc::SYS_readv, ANY),
    (libc::SYS_ppoll, ANY),
    (libc::SYS_pwritev, ANY),
    (libc::SYS_preadv, ANY),
    // Pages of QEMU's firmware, which are copied.
    (libc::SYS_pwrite64, ANY),
    (libc::SYS_pread64, ANY),
];

const STREAM: Only = Bits(1, !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32 as u64, libc::SOCK_STREAM as u64);

/// Removes a listening socket's file, if the file still belongs to the socket.
const SOCKET_FILES: &[Call] =
    &[(libc::SYS_statx, ANY), (libc::SYS_newfstatat, ANY), (libc::SYS_lstat, ANY), (libc::SYS_unlink, ANY)];

const MIGRATION_REQUESTS: &[Request] = &[
    KVM_CLEAR_DIRTY_LOG,
    KVM_GET_DIRTY_LOG,
    PAGEMAP_SCAN,
    // Dirty logging starts and stops.
    KVM_SET_USER_MEMORY_REGION,
    // Pages of a guest that runs before all of its memory has arrived.
    UFFDIO_COPY,
    UFFDIO_ZEROPAGE,
    UFFDIO_WAKE,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
];

const DRIVER: &[Call] = &[
    // Devices of a reset machine: their events, and their share of a tap.
    (libc::SYS_eventfd2, ANY),
    (libc::SYS_epoll_create1, ANY),
    (libc::SYS_epoll_ctl, ANY),
    (libc::SYS_fcntl, &[Is(1, libc::F_DUPFD_CLOEXEC as u64)]),
    // New files of `dump-schema` and of a migration to a file; and `target-schema`, which is read.
    (libc::SYS_openat, &[to_read(2)]),
    (libc::SYS_openat, &[new(2)]),
    (libc::SYS_open, &[to_read(1)]),
    (libc::SYS_open, &[new(1)]),
    (libc::SYS_fstat, ANY),
];

/// A source is awaited where `migrate-incoming` says, and in post-copy again where `migrate-recover` says: at a unix socket for
/// this user only, or at another address.
const LISTENS: &[Call] = &[
    (libc::SYS_bind, ANY),
    (libc::SYS_listen, ANY),
    (libc::SYS_fchmod, &[Is(1, 0o600)]),
    (libc::SYS_setsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_REUSEADDR as u64)]),
    // Checks of a passed socket.
    (libc::SYS_getsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_DOMAIN as u64)]),
    (libc::SYS_getsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_TYPE as u64)]),
    (libc::SYS_getsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_ACCEPTCONN as u64)]),
];

/// Condition on the flags of an open, at their index: read an existing file.
const fn to_read(flags: u8) -> Only {
    Bits(flags, OPEN_BITS, libc::O_RDONLY as u64)
}

/// Condition on the flags of an open: create a new file (`File::create_new`).
const fn new(flags: u8) -> Only {
    Bits(flags, OPEN_BITS, (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u64)
}

/// All flags except those that do not change what is opened.
const OPEN_BITS: u64 =
    !(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_DIRECT | O_LARGEFILE) as u32 as u64;
/// Set by musl only; other libraries do not need it (asm-generic/fcntl.h).
const O_LARGEFILE: c_int = 0o100_000;

const DRIVER_REQUESTS: &[Request] = &[
    KVM_KVMCLOCK_CTRL,
    KVM_PRE_FAULT_MEMORY,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_SUPPORTED_CPUID,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_TSS_ADDR,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_ENABLE_CAP,
    KVM_IOEVENTFD,
    KVM_CREATE_VCPU,
    KVM_SET_CPUID2,
    KVM_GET_CPUID2,
    KVM_X86_SETUP_MCE,
    KVM_GET_STATS_FD,
    KVM_GET_TSC_KHZ,
    KVM_SET_TSC_KHZ,
    KVM_GET_CLOCK,
    KVM_SET_CLOCK,
    KVM_GET_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR,
    KVM_GET_REGS,
    KVM_SET_REGS,
    KVM_GET_SREGS,
    KVM_SET_SREGS,
    KVM_GET_MSRS,
    KVM_SET_MSRS,
    KVM_GET_MP_STATE,
    KVM_SET_MP_STATE,
    KVM_GET_XSAVE,
    KVM_SET_XSAVE,
    KVM_GET_XCRS,
    KVM_SET_XCRS,
    KVM_GET_DEBUGREGS,
    KVM_SET_DEBUGREGS,
    KVM_GET_LAPIC,
    KVM_SET_LAPIC,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_VCPU_EVENTS,
    KVM_GET_IRQCHIP,
    KVM_SET_IRQCHIP,
    KVM_GET_PIT2,
    KVM_SET_PIT2,
];

/// The resolver reads its configuration and asks the name service of this host or a server by UDP and TCP.
const LOOK_UP: &[Call] = &[
    (libc::SYS_openat, &[to_read(2)]),
    (libc::SYS_open, &[to_read(1)]),
    (libc::SYS_readv, ANY),
    (libc::SYS_newfstatat, ANY),
    (libc::SYS_fstat, ANY),
    (libc::SYS_statx, ANY),
    (libc::SYS_lseek, ANY),
    (libc::SYS_uname, ANY),
    (libc::SYS_sysinfo, ANY),
    (libc::SYS_socket, &[Is(0, libc::AF_UNIX as u64)]),
    (libc::SYS_socket, &[Is(0, libc::AF_INET as u64)]),
    (libc::SYS_socket, &[Is(0, libc::AF_INET6 as u64)]),
    // The addresses of this host decide the order of the answers (`getaddrinfo`, RFC 3484).
    (libc::SYS_socket, &[Is(0, libc::AF_NETLINK as u64), Is(2, libc::NETLINK_ROUTE as u64)]),
    (libc::SYS_bind, ANY),
    (libc::SYS_getsockname, ANY),
    (libc::SYS_connect, ANY),
    (libc::SYS_setsockopt, ANY),
    (libc::SYS_poll, ANY),
    (libc::SYS_sendto, ANY),
    (libc::SYS_sendmsg, ANY),
    (libc::SYS_sendmmsg, ANY),
    (libc::SYS_recvfrom, ANY),
    (libc::SYS_recvmsg, ANY),
];
