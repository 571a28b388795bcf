/*
 * What the kernel's own headers have beside types: constants of the kernel's inside, and small functions. Headers that
 * bring in kernel.h bring this as well. Kept to what has been the same in every kernel with BTF; macros stand for
 * functions where the fields they read are not in every kernel, since a macro nobody uses costs nothing.
 */
#ifndef BPFNB_INTERNALS_H
#define BPFNB_INTERNALS_H

/* include/linux/kernel.h, fs.h */
#define READ 0
#define WRITE 1

/* include/linux/sched.h */
#define TASK_RUNNING 0x00000000
#define TASK_INTERRUPTIBLE 0x00000001
#define TASK_UNINTERRUPTIBLE 0x00000002
#define __TASK_STOPPED 0x00000004
#define __TASK_TRACED 0x00000008
#define EXIT_DEAD 0x00000010
#define EXIT_ZOMBIE 0x00000020
#define EXIT_TRACE (EXIT_ZOMBIE | EXIT_DEAD)
#define TASK_PARKED 0x00000040
#define TASK_DEAD 0x00000080
#define TASK_WAKEKILL 0x00000100
#define TASK_WAKING 0x00000200
#define TASK_NOLOAD 0x00000400
#define TASK_NEW 0x00000800
#define TASK_KILLABLE (TASK_WAKEKILL | TASK_UNINTERRUPTIBLE)
#define TASK_STOPPED (TASK_WAKEKILL | __TASK_STOPPED)
#define TASK_IDLE (TASK_UNINTERRUPTIBLE | TASK_NOLOAD)
#define TASK_NORMAL (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE)
#define PF_VCPU 0x00000001
#define PF_IDLE 0x00000002
#define PF_IO_WORKER 0x00000010
#define PF_WQ_WORKER 0x00000020
#define PF_FORKNOEXEC 0x00000040
#define PF_MCE_PROCESS 0x00000080
#define PF_SUPERPRIV 0x00000100
#define PF_DUMPCORE 0x00000200
#define PF_SIGNALED 0x00000400
#define PF_MEMALLOC 0x00000800
#define PF_NPROC_EXCEEDED 0x00001000
#define PF_NOFREEZE 0x00008000
#define PF_KSWAPD 0x00020000
#define PF_RANDOMIZE 0x00400000
#define PF_NO_SETAFFINITY 0x04000000

/* include/linux/fs.h */
#define FMODE_LSEEK ((fmode_t)0x4)
#define FMODE_PREAD ((fmode_t)0x8)
#define FMODE_PWRITE ((fmode_t)0x10)
#define FMODE_EXEC ((fmode_t)0x20)
#define FMODE_PATH ((fmode_t)0x4000)
#define FMODE_OPENED ((fmode_t)0x80000)
#define FMODE_CREATED ((fmode_t)0x100000)
#define IOCB_EVENTFD (1 << 16)
#define IOCB_DIRECT (1 << 17)
#define IOCB_WRITE (1 << 18)
#define S_SYNC (1 << 0)
#define S_NOATIME (1 << 1)
#define S_APPEND (1 << 2)
#define S_IMMUTABLE (1 << 3)
#define S_DEAD (1 << 4)
#define S_SWAPFILE (1 << 8)
#define S_PRIVATE (1 << 9)
#define S_AUTOMOUNT (1 << 11)
#define SB_RDONLY BIT(0)
#define SB_NOSUID BIT(1)
#define SB_NODEV BIT(2)
#define SB_NOEXEC BIT(3)
#define SB_SYNCHRONOUS BIT(4)
#define SB_NOATIME BIT(10)
#define SB_KERNMOUNT BIT(22)

/* include/linux/mm.h */
#define VM_NONE 0x00000000
#define VM_READ 0x00000001
#define VM_WRITE 0x00000002
#define VM_EXEC 0x00000004
#define VM_SHARED 0x00000008
#define VM_MAYREAD 0x00000010
#define VM_MAYWRITE 0x00000020
#define VM_MAYEXEC 0x00000040
#define VM_MAYSHARE 0x00000080
#define VM_PFNMAP 0x00000400
#define VM_LOCKED 0x00002000
#define VM_IO 0x00004000
#define VM_DONTCOPY 0x00020000
#define VM_DONTEXPAND 0x00040000
#define VM_ACCOUNT 0x00100000
#define VM_NORESERVE 0x00200000
#define VM_HUGETLB 0x00400000
#define VM_DONTDUMP 0x04000000
#define VM_HUGEPAGE 0x20000000
#define VM_NOHUGEPAGE 0x40000000

/* include/linux/blkdev.h, blk_types.h */
#define DISK_NAME_LEN 32
#define BDEVNAME_SIZE 32
#define SECTOR_SHIFT 9
#define SECTOR_SIZE (1 << SECTOR_SHIFT)
#define REQ_OP_BITS 8
#define REQ_OP_MASK ((1 << REQ_OP_BITS) - 1)
#define REQ_FLAG_BITS 24
#define req_op(req) ((req)->cmd_flags & REQ_OP_MASK)
#define bio_op(bio) ((bio)->bi_opf & REQ_OP_MASK)

/* include/linux/scatterlist.h. bcc rewrites no dereference in a function that is not the program's own: these are for
 * copies on the stack, as they are with the kernel's headers. */
#define SG_CHAIN 0x01UL
#define SG_END 0x02UL
#define SG_PAGE_LINK_MASK (SG_CHAIN | SG_END)
#ifdef BPFNB_HAS_SCATTERLIST
static __always_inline unsigned int __sg_flags(struct scatterlist *sg) {
    return sg->page_link & SG_PAGE_LINK_MASK;
}
static __always_inline bool sg_is_chain(struct scatterlist *sg) {
    return __sg_flags(sg) & SG_CHAIN;
}
static __always_inline bool sg_is_last(struct scatterlist *sg) {
    return __sg_flags(sg) & SG_END;
}
static __always_inline struct scatterlist *sg_chain_ptr(struct scatterlist *sg) {
    return (struct scatterlist *)(sg->page_link & ~SG_PAGE_LINK_MASK);
}
#endif

/* include/linux/skbuff.h */
#ifdef BPFNB_HAS_SKB_QUEUES
static __always_inline u16 skb_get_queue_mapping(const struct sk_buff *skb) {
    return skb->queue_mapping;
}
static __always_inline u16 skb_get_rx_queue(const struct sk_buff *skb) {
    return skb->queue_mapping - 1;
}
static __always_inline bool skb_rx_queue_recorded(const struct sk_buff *skb) {
    return skb->queue_mapping != 0;
}
#endif

/* include/linux/tcp.h, udp.h, ipv6.h, include/net/inet_sock.h and the like: a socket as what it is part of. Each begins
 * with the one before. */
static __always_inline struct inet_sock *inet_sk(const struct sock *sk) {
    return (struct inet_sock *)sk;
}
static __always_inline struct inet_connection_sock *inet_csk(const struct sock *sk) {
    return (struct inet_connection_sock *)sk;
}
static __always_inline struct tcp_sock *tcp_sk(const struct sock *sk) {
    return (struct tcp_sock *)sk;
}
static __always_inline struct udp_sock *udp_sk(const struct sock *sk) {
    return (struct udp_sock *)sk;
}
static __always_inline struct unix_sock *unix_sk(const struct sock *sk) {
    return (struct unix_sock *)sk;
}
static __always_inline struct inet_timewait_sock *inet_twsk(const struct sock *sk) {
    return (struct inet_timewait_sock *)sk;
}
static __always_inline struct request_sock *inet_reqsk(const struct sock *sk) {
    return (struct request_sock *)sk;
}
static __always_inline struct inet_request_sock *inet_rsk(const struct request_sock *req) {
    return (struct inet_request_sock *)req;
}
static __always_inline struct tcp_request_sock *tcp_rsk(const struct request_sock *req) {
    return (struct tcp_request_sock *)req;
}

#endif
