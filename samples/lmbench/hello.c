/* What the loops `exec` and `shell` run: it says one line to a closed descriptor. */
#include <unistd.h>

int main(void) {
    static const char line[] = "Hello world\n";
    return write(1, line, sizeof line - 1) < 0;
}
