/* A program with a connection on a ring puts it into a BPF sockmap whose program sends back what comes, and does nothing more itself. */
#define _GNU_SOURCE
#include "pair.h"
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int bpf(int cmd, union bpf_attr *a) { return syscall(SYS_bpf, cmd, a, sizeof *a); }

static int ready[2];

/* Asks, once that is so, and goes on only if it has the answer. What comes before a socket is in a map is not its program's. */
static void ask(int s)
{
	char b;
	if (read(ready[0], &b, 1) != 1) _exit(5);
	for (int i = 0; i < 400; i++)
		if (send(s, "y", 1, 0) != 1 || recv(s, &b, 1, 0) != 1 || b != 'y') _exit(4);
	_exit(7);
}

int main(void)
{
	alarm(30);
	pipe(ready);
	pid_t p = pair(ask);
	exchange(fd, 0);
	union bpf_attr a = { .map_type = BPF_MAP_TYPE_SOCKMAP, .key_size = 4, .value_size = 4, .max_entries = 2 };
	int map = bpf(BPF_MAP_CREATE, &a);
	struct bpf_insn code[] = {
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 2, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map }, { 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 4 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_sk_redirect_map },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	memset(&a, 0, sizeof a);
	a.prog_type = BPF_PROG_TYPE_SK_SKB;
	a.insns = (unsigned long)code;
	a.insn_cnt = sizeof code / sizeof *code;
	a.license = (unsigned long)"Apache-2.0";
	int prog = bpf(BPF_PROG_LOAD, &a);
	if (map < 0 || prog < 0) return printf("no sockmap: %d\n", errno), 0;
	memset(&a, 0, sizeof a);
	a.target_fd = map;
	a.attach_bpf_fd = prog;
	a.attach_type = BPF_SK_SKB_STREAM_VERDICT;
	if (bpf(BPF_PROG_ATTACH, &a)) return printf("attach: %d\n", errno), 0;
	int key = 0, status;
	memset(&a, 0, sizeof a);
	a.map_fd = map;
	a.key = (unsigned long)&key;
	a.value = (unsigned long)&fd;
	if (bpf(BPF_MAP_UPDATE_ELEM, &a)) return printf("update: %d\n", errno), 0;
	write(ready[1], "r", 1);
	waitpid(p, &status, 0);
	printf("status %#x\n", status);
	return 0;
}
