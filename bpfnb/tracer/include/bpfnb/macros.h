/*
 * Macros that kernel programs use. BTF describes types, never macros, so these are kept by hand, from
 * the kernel's UAPI headers (the same on every architecture unless noted) and include/linux.
 * What the running kernel has as an enumerator is dropped from here when the tree is made, since
 * which of the two a name is changes between releases (TASK_COMM_LEN, BPF_F_CURRENT_CPU).
 * Numbers that Python knows (errno, signals, O_*, S_IF*, AF_*) are in constants.h instead.
 */
#ifndef BPFNB_MACROS_H
#define BPFNB_MACROS_H

/* bcc declares helpers over these; named here first, they are not local to one prototype. */
struct bpf_dynptr;
struct bpf_perf_event_data;
struct bpf_pidns_info;
struct bpf_redir_neigh;
struct bpf_sock_addr;
struct bpf_sock_ops;
struct bpf_sysctl;
struct bpf_tcp_sock;
struct bpf_timer;
struct btf_ptr;
struct cgroup;
struct file;
struct inode;
struct linux_binprm;
struct mptcp_sock;
struct path;
struct seq_file;
struct sk_buff;
struct sk_reuseport_md;
struct sock;
struct socket;
struct task_struct;
struct tcp6_sock;
struct tcp_request_sock;
struct tcp_sock;
struct tcp_timewait_sock;
struct udp6_sock;
struct unix_sock;
struct user_pt_regs;
struct user_regs_struct;

/* include/linux/compiler*.h, stddef.h, container_of.h, array_size.h */
#define NULL ((void *)0)
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define barrier() __asm__ __volatile__("" : : : "memory")
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, val) (*(volatile __typeof__(x) *)&(x) = (val))
#define offsetof(type, member) __builtin_offsetof(type, member)
#define container_of(ptr, type, member) ((type *)((void *)(ptr) - offsetof(type, member)))
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define BIT(n) (1UL << (n))
#define BIT_ULL(n) (1ULL << (n))

#define __always_inline inline __attribute__((always_inline))
#define noinline __attribute__((noinline))
#define __maybe_unused __attribute__((unused))
#define __packed __attribute__((packed))
#define __aligned(n) __attribute__((aligned(n)))

/* Annotations for sparse, empty for a compiler. */
#define __user
#define __kernel
#define __iomem
#define __percpu
#define __rcu
#define __force
#define __bitwise

/* How x86 addresses per-CPU data since v6.15: tracepoints' format files have it in their types, and BPF has no such
 * address space. */
#undef __seg_gs
#define __seg_gs
#undef __seg_fs
#define __seg_fs

/*
 * include/linux/byteorder/generic.h. Without parameters on purpose: bcc rewrites no dereference inside a macro's
 * arguments, and so ntohs(sk->__sk_common.skc_dport) works. Constant arguments give constants, as in the kernel.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define cpu_to_be16 __builtin_bswap16
#define cpu_to_be32 __builtin_bswap32
#define cpu_to_be64 __builtin_bswap64
#define cpu_to_le16 (__u16)
#define cpu_to_le32 (__u32)
#define cpu_to_le64 (__u64)
#else
#define cpu_to_be16 (__u16)
#define cpu_to_be32 (__u32)
#define cpu_to_be64 (__u64)
#define cpu_to_le16 __builtin_bswap16
#define cpu_to_le32 __builtin_bswap32
#define cpu_to_le64 __builtin_bswap64
#endif
#define be16_to_cpu cpu_to_be16
#define be32_to_cpu cpu_to_be32
#define be64_to_cpu cpu_to_be64
#define le16_to_cpu cpu_to_le16
#define le32_to_cpu cpu_to_le32
#define le64_to_cpu cpu_to_le64
#define htons cpu_to_be16
#define htonl cpu_to_be32
#define ntohs be16_to_cpu
#define ntohl be32_to_cpu

/* include/linux/minmax.h, math64.h, math.h. Each argument is evaluated once. */
#define min(x, y) ({ __typeof__(x) bpfnb_x = (x); __typeof__(y) bpfnb_y = (y); bpfnb_x < bpfnb_y ? bpfnb_x : bpfnb_y; })
#define max(x, y) ({ __typeof__(x) bpfnb_x = (x); __typeof__(y) bpfnb_y = (y); bpfnb_x > bpfnb_y ? bpfnb_x : bpfnb_y; })
#define min_t(type, x, y) min((type)(x), (type)(y))
#define max_t(type, x, y) max((type)(x), (type)(y))
#define clamp(val, lo, hi) min((__typeof__(val))max(val, lo), hi)
#define clamp_t(type, val, lo, hi) min_t(type, max_t(type, val, lo), hi)
#define swap(a, b) do { __typeof__(a) bpfnb_a = (a); (a) = (b); (b) = bpfnb_a; } while (0)
#define abs(x) ({ __typeof__(x) bpfnb_x = (x); bpfnb_x < 0 ? -bpfnb_x : bpfnb_x; })
#define DIV_ROUND_UP(n, d) (((n) + (d) - 1) / (d))
#define ALIGN(x, a) (((x) + (__typeof__(x))(a) - 1) & ~((__typeof__(x))(a) - 1))
#define round_up(x, y) ((((x) - 1) | ((__typeof__(x))(y) - 1)) + 1)
#define round_down(x, y) ((x) & ~((__typeof__(x))(y) - 1))
#define div_u64(dividend, divisor) ((u64)(dividend) / (u32)(divisor))
#define div64_u64(dividend, divisor) ((u64)(dividend) / (u64)(divisor))
#define lower_32_bits(n) ((u32)((n) & 0xffffffff))
#define upper_32_bits(n) ((u32)(((n) >> 16) >> 16))

/* include/linux/log2.h, for any argument, constants included (bcc sizes BPF_STACK_TRACE so) */
#define ilog2(n) (63 - __builtin_clzll(n))
#define roundup_pow_of_two(n) ((n) < 2 ? 1UL : 1UL << (64 - __builtin_clzll((n) - 1)))
#define is_power_of_2(n) ((n) != 0 && ((n) & ((n) - 1)) == 0)

/* include/asm-generic/page.h; PAGE_SHIFT is the machine's, in config.h */
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define PAGE_ALIGN(address) ALIGN(address, PAGE_SIZE)

/* arch/x86/include/asm/page_64_types.h, arch/arm64/include/asm/memory.h: where the kernel's half of memory begins */
#if defined(CONFIG_X86_64)
#define __PAGE_OFFSET_BASE_L5 0xff11000000000000UL
#define __PAGE_OFFSET_BASE_L4 0xffff888000000000UL
#define PAGE_OFFSET __PAGE_OFFSET_BASE_L4
#elif defined(CONFIG_ARM64)
#define PAGE_OFFSET 0xfff0000000000000UL
#endif

/* include/uapi/linux/limits.h, include/linux/sched.h, include/uapi/linux/perf_event.h */
#define NAME_MAX 255
#define IFNAMSIZ 16
#define PATH_MAX 4096
#define TASK_COMM_LEN 16
#define PERF_MAX_STACK_DEPTH 127

/* include/linux/limits.h */
#define U8_MAX ((u8)~0U)
#define U16_MAX ((u16)~0U)
#define U32_MAX ((u32)~0U)
#define U64_MAX ((u64)~0ULL)
#define INT_MAX ((int)(~0U >> 1))
#define UINT_MAX (~0U)
#define ULONG_MAX (~0UL)

/* include/vdso/time64.h */
#define MSEC_PER_SEC 1000L
#define USEC_PER_MSEC 1000L
#define NSEC_PER_USEC 1000L
#define NSEC_PER_MSEC 1000000L
#define USEC_PER_SEC 1000000L
#define NSEC_PER_SEC 1000000000L

/* include/linux/err.h, include/linux/errno.h */
#define MAX_ERRNO 4095
#define IS_ERR_VALUE(x) ((unsigned long)(void *)(x) >= (unsigned long)-MAX_ERRNO)
#define IS_ERR(ptr) IS_ERR_VALUE(ptr)
#define PTR_ERR(ptr) ((long)(ptr))
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ENOIOCTLCMD 515
#define ERESTART_RESTARTBLOCK 516
#define EPROBE_DEFER 517

/* include/linux/kdev_t.h */
#define MINORBITS 20
#define MINORMASK ((1U << MINORBITS) - 1)
#define MAJOR(dev) ((unsigned int)((dev) >> MINORBITS))
#define MINOR(dev) ((unsigned int)((dev) & MINORMASK))
#define MKDEV(ma, mi) (((ma) << MINORBITS) | (mi))

/* include/uapi/linux/stat.h */
#define S_IFMT 00170000
#define S_ISLNK(m) (((m) & S_IFMT) == S_IFLNK)
#define S_ISREG(m) (((m) & S_IFMT) == S_IFREG)
#define S_ISDIR(m) (((m) & S_IFMT) == S_IFDIR)
#define S_ISCHR(m) (((m) & S_IFMT) == S_IFCHR)
#define S_ISBLK(m) (((m) & S_IFMT) == S_IFBLK)
#define S_ISFIFO(m) (((m) & S_IFMT) == S_IFIFO)
#define S_ISSOCK(m) (((m) & S_IFMT) == S_IFSOCK)

/* include/uapi/linux/fcntl.h, include/linux/fs.h */
#define AT_FDCWD -100
#define FMODE_READ ((fmode_t)1)
#define FMODE_WRITE ((fmode_t)2)

/* include/uapi/linux/sched.h */
#define CSIGNAL 0x000000ff
#define CLONE_VM 0x00000100
#define CLONE_FS 0x00000200
#define CLONE_FILES 0x00000400
#define CLONE_SIGHAND 0x00000800
#define CLONE_PIDFD 0x00001000
#define CLONE_PTRACE 0x00002000
#define CLONE_VFORK 0x00004000
#define CLONE_PARENT 0x00008000
#define CLONE_THREAD 0x00010000
#define CLONE_NEWNS 0x00020000
#define CLONE_SYSVSEM 0x00040000
#define CLONE_SETTLS 0x00080000
#define CLONE_PARENT_SETTID 0x00100000
#define CLONE_CHILD_CLEARTID 0x00200000
#define CLONE_DETACHED 0x00400000
#define CLONE_UNTRACED 0x00800000
#define CLONE_CHILD_SETTID 0x01000000
#define CLONE_NEWCGROUP 0x02000000
#define CLONE_NEWUTS 0x04000000
#define CLONE_NEWIPC 0x08000000
#define CLONE_NEWUSER 0x10000000
#define CLONE_NEWPID 0x20000000
#define CLONE_NEWNET 0x40000000
#define CLONE_IO 0x80000000
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#define CLONE_INTO_CGROUP 0x200000000ULL
#define CLONE_NEWTIME 0x00000080

/* include/linux/sched.h */
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000

/* include/uapi/linux/if_ether.h */
#define ETH_ALEN 6
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86DD

/* include/uapi/linux/pkt_cls.h */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_OK 0
#define TC_ACT_RECLASSIFY 1
#define TC_ACT_SHOT 2
#define TC_ACT_PIPE 3
#define TC_ACT_STOLEN 4
#define TC_ACT_REDIRECT 7

/* include/uapi/linux/bpf.h: macros up to 5.5, enumerators since */
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_EXIST 2
#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_F_INDEX_MASK 0xffffffffULL
#define BPF_F_CURRENT_CPU BPF_F_INDEX_MASK
#define BPF_F_USER_STACK (1ULL << 8)
#define BPF_F_FAST_STACK_CMP (1ULL << 9)
#define BPF_F_REUSE_STACKID (1ULL << 10)

#endif
