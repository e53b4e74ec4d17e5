// A server of several processes: the first one accepts, and sends each connection to a worker (or, with
// NODE_CLUSTER_SCHED_POLICY=none, its listener). Answers with what it was sent. Arguments: port, number of workers.
const cluster = require('cluster');
const http = require('http');
const [port, workers] = process.argv.slice(2).map(Number);

if (cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork();
  process.on('SIGTERM', () => process.exit(0));
} else {
  http.createServer((request, response) => {
    const body = [];
    request.on('data', (part) => body.push(part));
    request.on('end', () => response.end(Buffer.concat(body)));
  }).listen(port, '127.0.0.1');
}
