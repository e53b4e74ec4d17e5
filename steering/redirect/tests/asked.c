/* Says whom the client of the connection on descriptor 0 has asked for. */
#include <arpa/inet.h>
#include <culvert.h>
#include <stdio.h>

int main(void)
{
	union {
		struct sockaddr_storage any;
		struct sockaddr_in four;
		struct sockaddr_in6 six;
	} address;
	char text[INET6_ADDRSTRLEN];

	if (culvert_asked(0, &address.any) < 0)
		return 1;
	if (address.any.ss_family == AF_INET)
		printf("%s:%d", inet_ntop(AF_INET, &address.four.sin_addr, text, sizeof text), ntohs(address.four.sin_port));
	else
		printf("[%s]:%d", inet_ntop(AF_INET6, &address.six.sin6_addr, text, sizeof text), ntohs(address.six.sin6_port));
	return 0;
}
