import { Connection } from '@rejoin/client';

const connection = new Connection({ url: process.env.REJOIN_SERVER, token: process.env.REJOIN_TOKEN });
connection.watch('smart-maintenance', {
  events: (items) => items.forEach(({ seq, kind, data }) => console.log(seq, kind, JSON.stringify(data))),
});
connection.start();
const run = await connection.command({ op: 'run', task: 'smart-maintenance' });
console.error(`started ${run.id}`);
