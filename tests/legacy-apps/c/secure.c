/* Says with whose rights it runs, and whether the kernel asks for secure execution. */
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
    printf("uid %d euid %d secure %lu socket %d\n", getuid(), geteuid(), getauxval(AT_SECURE),
           socket(AF_INET, SOCK_STREAM, 0) >= 0);
    return 0;
}
