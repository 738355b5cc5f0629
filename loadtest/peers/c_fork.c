// A process per client in C (fork(2)): what a process per client in Python is measured against.
#define _GNU_SOURCE
#include "listen.h"
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

// No zombies. (Ignoring SIGCHLD would do, but then their CPU time would be nobody's.)
static void reap(int number)
{
	int before = errno;
	(void)number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	errno = before;
}

int main(int count, char **words)
{
	int listener = listening(count, words, 0);
	struct sigaction action = {.sa_handler = reap, .sa_flags = SA_RESTART};
	sigaction(SIGCHLD, &action, NULL);
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
