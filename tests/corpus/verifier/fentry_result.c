// class: bad return value
// attach: fentry:vfs_read=f
// needs: fentry
int f(void *ctx) {
    return 7;  // <- here
}
