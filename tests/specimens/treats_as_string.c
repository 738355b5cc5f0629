// What arrives is taken for a C string, which ends at the first NUL.
//
// Fails: S1
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void *serve(void *given)
{
	int fd = (int)(long)given;
	char buffer[4097];
	ssize_t size;
	while ((size = read(fd, buffer, sizeof buffer - 1)) > 0) {
		buffer[size] = 0;
		size_t left = strlen(buffer);
		for (char *at = buffer; left > 0;) {
			ssize_t sent = write(fd, at, left);
			if (sent <= 0)
				goto end;
			at += sent;
			left -= sent;
		}
	}
end:
	close(fd);
	return NULL;
}

int main(int count, char **words)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(count > 1 ? atoi(words[1]) : 9999),
				      .sin_addr = {htonl(INADDR_LOOPBACK)}};
	signal(SIGPIPE, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
		return 1;
	for (;;) {
		pthread_t thread;
		int fd = accept(listener, NULL, NULL);
		if (fd < 0) {
			usleep(50000);
			continue;
		}
		if (pthread_create(&thread, NULL, serve, (void *)(long)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
}
