import { defineConfig } from 'vite';

// Files without comments or long names, for those who use the client without a bundler of their own. The outbox and the
// tabs are files of their own beside it, for those who want them.
export default defineConfig({
  build: {
    target: 'es2022',
    lib: { entry: ['src/index.ts', 'src/outbox.ts', 'src/tabs.ts'], formats: ['es'] },
    rolldownOptions: {
      external: ['./index.js'],
      // As a library Vite would leave the white space in.
      output: { minify: true, comments: false },
    },
  },
});
