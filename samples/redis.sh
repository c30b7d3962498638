# A redis server under load: sets and gets of 100 bytes under 10,000 keys, by 4 clients. Recording is
# between the marks, so without the start of the server.
redis-server --save '' --port 0 --unixsocket /tmp/redis --daemonize yes >/dev/null
while ! redis-cli -s /tmp/redis ping >/dev/null 2>&1; do :; done
nestwalk-mark 3
redis-benchmark -s /tmp/redis -c 4 -n 500 -r 10000 -d 100 -t set,get -q
nestwalk-mark 4
redis-cli -s /tmp/redis shutdown
