// A thread per client in C (pthreads(7)): what a thread per client in Python is measured against.
#define _GNU_SOURCE
#include "listen.h"
#include <pthread.h>

static void *serve(void *client)
{
	int fd = (int)(long)client;
	echo(fd);
	close(fd);
	return NULL;
}

int main(int count, char **words)
{
	int listener = listening(count, words, 0);
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, 256 * 1024);
	for (;;) {
		pthread_t thread;
		int fd = accept(listener, NULL, NULL);
		if (fd >= 0 && pthread_create(&thread, &attributes, serve, (void *)(long)fd))
			close(fd);
	}
}
