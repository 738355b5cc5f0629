// A process per client in C (fork(2)): what a process per client in Python is measured against.
#define _GNU_SOURCE
#include "listen.h"
#include <signal.h>
#include <sys/prctl.h>

int main(int count, char **words)
{
	int listener = listening(count, words, 0);
	signal(SIGCHLD, SIG_IGN); // no zombies
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL); // the children go with the parent
			close(listener);
			echo(fd);
			_exit(0);
		}
		close(fd);
	}
}
